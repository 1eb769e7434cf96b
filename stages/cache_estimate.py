"""cache estimate: how large a cache will be, for every choice of what to keep."""

from pipeline.artefacts.cache_arrays import array_specs, default_shard_rows, view_arrays
from pipeline.artefacts.cache_record import CacheIdentity, CacheLayout, CacheManifest, CacheShape
from pipeline.artefacts.dataset import Beton, Dataset
from pipeline.data.views import ViewSpec
from pipeline.models.zoo import build
from stages.configs import Config
from stages.requests import view_spec

_TOP_K = 16


def estimate(config: Config) -> str:
    """A table of bytes, uncompressed; the row of the configuration is marked."""
    dataset = Dataset.open(config.data_folder)
    arch = config.cache_teacher.arch or config.train_teacher.arch
    num_features = build(arch, num_classes=dataset.num_classes).head.in_features
    settings = config.cache_teacher
    configured = (settings.top_k, settings.features)
    top_k = [_TOP_K] if dataset.num_classes > _TOP_K else []
    offered = [(kept, features) for kept in (0, *top_k) for features in (True, False)]
    choices = dict.fromkeys([*offered, configured])
    views = view_spec(config.views)
    lines = [
        f"{'keeps':<28} {'bytes per image and view':>24} {'training images':>18} "
        f"{'test images':>14} {'all, MB':>12} {'shards':>7}"
    ]
    for choice in choices:
        train = _manifest(config, dataset.train, views, dataset.num_classes, num_features, *choice)
        test = _manifest(
            config, dataset.eval, ViewSpec(), dataset.num_classes, num_features, *choice
        )
        sizes = [_bytes(manifest) for manifest in (train, test)]
        shards = sum(m.num_shards * m.shape.num_views for m in (train, test))
        lines.append(
            f"{_name(*choice):<28} {_bytes_per_row(train):>24,} {sizes[0]:>18,} {sizes[1]:>14,} "
            f"{sum(sizes) / 1e6:>12,.1f} {shards:>7,}"
            + ("  <- configured" if choice == configured else "")
        )
    lines.append(
        f"\n{dataset.train.num_samples:,} training images in {views.num_views + 1} views, "
        f"{dataset.eval.num_samples:,} test images in the clean one; "
        f"{dataset.num_classes} classes, {num_features} features of {arch}. Uncompressed: zstd "
        "saves about a tenth."
    )
    return "\n".join(lines)


def _name(top_k: int, features: bool) -> str:
    kept = f"top {top_k} + label" if top_k else "all logits"
    return kept + (" + features" if features else "")


def _manifest(
    config: Config,
    beton: Beton,
    views: ViewSpec,
    num_classes: int,
    num_features: int,
    top_k: int,
    features: bool,
) -> CacheManifest:
    """The manifest of a cache that nobody made."""
    settings = config.cache_teacher
    identity = CacheIdentity(
        weights="",
        arch="",
        fingerprint=beton.record.fingerprint,
        pixel_digest=beton.record.pixel_digest,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        views=views.as_json(),
        precision="fp32",
        features=features,
        top_k=top_k,
        temperatures=settings.temperatures if top_k else (),
    )
    widest = max(num_features * features, top_k or num_classes)
    return CacheManifest(
        id=identity.id,
        identity=identity,
        shape=CacheShape(
            num_views=views.num_views + 1,
            num_samples=beton.num_samples,
            num_classes=num_classes,
            num_features=num_features,
        ),
        layout=CacheLayout(
            shard_rows=settings.shard_rows or default_shard_rows(2 * widest),
            codec=settings.compression,
        ),
    )


def _bytes_per_row(manifest: CacheManifest) -> int:
    return sum(spec.row_bytes for spec in view_arrays(manifest))


def _bytes(manifest: CacheManifest) -> int:
    """Of all objects: as they are stored, or before compression without what it makes nothing of
    (the last chunk of a shard is filled up)."""
    shape, specs = manifest.shape, array_specs(manifest).values()
    whole = sum(spec.object_bytes for spec in specs if spec.shard_rows is None)
    if manifest.layout.codec == "zstd":
        return shape.num_views * shape.num_samples * _bytes_per_row(manifest) + whole
    bounds = [manifest.rows_of(shard) for shard in range(manifest.num_shards)]
    return whole + sum(
        shape.num_views * spec.uncompressed_bytes(stop - start)
        for spec in view_arrays(manifest)
        for start, stop in bounds
    )
