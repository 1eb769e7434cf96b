"""cache estimate: the size of a cache for each choice of what to keep, and the time of each stage.

The data set is the prepared one, or a hypothetical one of a given size.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.artefacts.dataset import Dataset
from pipeline.models.networks.classifier import Classifier
from pipeline.models.zoo import build
from pipeline.runtime.device import resolve_runtime
from stages.cache import costs as cache_costs
from stages.cache.costs import UnitCosts
from stages.cache.influence_costs import influence_products
from stages.cache.sizes import CacheSize
from stages.config.cache_teacher import CacheTeacherConfig
from stages.config.root import Config
from stages.views import seen_size, view_spec

_TOP_K = 16


@dataclass(frozen=True, kw_only=True)
class HypotheticalDataset:
    """The size of a data set that does not exist."""

    num_samples: int
    num_classes: int
    side: int
    """Side of its images in pixels."""


def estimate(
    config: Config, *, hypothetical: HypotheticalDataset | None = None, measures: bool = False
) -> str:
    """Tables of bytes and objects and, with measured unit costs, time.

    Args:
        config: the configuration.
        hypothetical: the size of the data set; None: the prepared data set of ``config``.
        measures: run the teacher and the other work of a cache for some seconds.
    """
    counts, num_classes, side = _images(config, hypothetical)
    model = _network(config, num_classes)
    num_views = (view_spec(config.views).num_views + 1, 1)
    caches = [
        CacheSize(
            settings=config.cache_teacher,
            num_samples=num_samples,
            num_views=views,
            num_classes=num_classes,
            num_features=model.head.in_features,
        )
        for num_samples, views in zip(counts, num_views, strict=False)
    ]
    train = caches[0]
    lines = [*_sizes(config, caches), "", _summary(config, caches, model)]
    lines += [f"too large: {reason}." for reason in train.too_large()]
    if measures:
        runtime = resolve_runtime(config.cache_teacher.precision)
        model = model.eval().to(runtime.device)
        costs = cache_costs.measure(model, train, side=side, runtime=runtime)
        work = cache_costs.stages(train, costs, products=_products(config, train))
        lines += ["", *_times(work, costs, model.arch, side)]
    return "\n".join(lines).rstrip()


def _images(config: Config, hypothetical: HypotheticalDataset | None) -> tuple[list[int], int, int]:
    """Numbers of training and test images, number of classes, and side of an image."""
    if hypothetical is not None:
        return [hypothetical.num_samples], hypothetical.num_classes, hypothetical.side
    dataset = Dataset.open(config.data_folder)
    counts = [dataset.train.num_samples, dataset.eval.num_samples]
    return counts, dataset.num_classes, seen_size(view_spec(config.views), dataset)[0]


def _network(config: Config, num_classes: int) -> Classifier:
    settings, trained = config.cache_teacher, config.train_teacher
    arch, head = (settings.arch, settings.head) if settings.arch else (trained.arch, trained.head)
    return build(arch, num_classes=num_classes, head=head)


def _sizes(config: Config, caches: list[CacheSize]) -> list[str]:
    """Table of the size for each choice of what to keep."""
    lines = [
        f"{'keeps':<28} {'bytes per image and view':>24} {'training images':>20} "
        f"{'test images':>16} {'all, MB':>14} {'shards':>9} {'objects':>9}"
    ]
    for choice in _choices(config.cache_teacher, caches[0].num_classes):
        sizes = [size.keeping(choice) for size in caches]
        num_bytes = [size.num_bytes for size in sizes]
        lines.append(
            f"{_name(choice):<28} {sizes[0].bytes_per_row:>24,} {num_bytes[0]:>20,} "
            f"{sum(num_bytes[1:]):>16,} {sum(num_bytes) / 1e6:>14,.1f} "
            f"{sum(size.num_shards for size in sizes):>9,} "
            f"{sum(size.num_objects for size in sizes):>9,}"
            + ("  <- configured" if choice == config.cache_teacher else "")
        )
    return lines


def _summary(config: Config, caches: list[CacheSize], model: Classifier) -> str:
    train = caches[0]
    test = "".join(f", {size.num_samples:,} test images in the clean view" for size in caches[1:])
    compressed = config.cache_teacher.compression == "zstd"
    return (
        f"{train.num_samples:,} training images in {train.num_views} views{test}; "
        f"{train.num_classes:,} classes, {train.num_features:,} features of {model.arch}. Writing "
        "an object is one request."
        + (" Sizes are before zstd, which saves about a tenth." if compressed else "")
    )


def _choices(settings: CacheTeacherConfig, num_classes: int) -> list[CacheTeacherConfig]:
    """Possible choices of what to keep, and the configured one."""
    top_k = [_TOP_K] if num_classes > _TOP_K else []
    kept = dict.fromkeys(
        [
            *((k, features) for k in (0, *top_k) for features in (True, False)),
            (settings.top_k, settings.features),
        ]
    )
    return [settings.model_copy(update={"top_k": k, "features": features}) for k, features in kept]


def _name(settings: CacheTeacherConfig) -> str:
    kept = f"top {settings.top_k} + label" if settings.top_k else "all logits"
    return kept + (" + features" if settings.features else "")


def _products(config: Config, size: CacheSize) -> int:
    return influence_products(config, size.num_samples, size.num_classes, size.num_features)


def _times(
    work: Iterable[tuple[str, str, float]], costs: UnitCosts, arch: str, side: int
) -> list[str]:
    """Table of the time of every stage in one process on this machine."""
    lines = [f"{'stage':<14} {'work':<70} {'hours here':>12}"]
    lines += [f"{stage:<14} {what:<70} {seconds / 3600:>12,.3f}" for stage, what, seconds in work]
    lines.append(
        f"\nOne process on {costs.device}: {arch} {costs.teacher_images:,.0f} images/s of "
        f"{side} x {side} pixels; {costs.written_bytes / 1e6:,.0f} MB/s written, "
        f"{costs.read_bytes / 1e6:,.0f} MB/s read; {costs.revised_rows:,.0f} labels/s revised; "
        f"{costs.head_flops / 1e9:,.0f} GFLOP/s of the head's Hessian products. Several "
        "processes can share this work (docs/scaling.md)."
    )
    return lines
