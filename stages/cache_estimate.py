"""cache estimate: how large a cache will be, for every choice of what to keep."""

from torch.nn import Linear

from pipeline.artefacts.cache_arrays import array_specs, view_arrays
from pipeline.artefacts.cache_record import CacheIdentity, CacheManifest, CacheShape
from pipeline.artefacts.dataset import Beton, Dataset
from pipeline.artefacts.zarr_arrays import CRC_BYTES
from pipeline.data.views import ViewSpec
from pipeline.models.zoo import build
from stages.configs import CacheTeacherConfig, Config
from stages.requests import cache_layout, view_spec

_TOP_K = 16


def estimate(config: Config) -> str:
    """A table of bytes, before compression; the row of the configuration is marked."""
    dataset = Dataset.open(config.data_folder)
    settings, views = config.cache_teacher, view_spec(config.views)
    trained = config.train_teacher
    arch, name = (settings.arch, settings.head) if settings.arch else (trained.arch, trained.head)
    head = build(arch, num_classes=dataset.num_classes, head=name).head
    lines = [
        f"{'keeps':<28} {'bytes per image and view':>24} {'training images':>18} "
        f"{'test images':>14} {'all, MB':>12} {'shards':>7}"
    ]
    for choice in _choices(settings, dataset.num_classes):
        train, test = (
            _manifest(choice, beton, of_beton, head)
            for beton, of_beton in ((dataset.train, views), (dataset.eval, ViewSpec()))
        )
        sizes = [_bytes(manifest) for manifest in (train, test)]
        shards = sum(m.num_shards * m.shape.num_views for m in (train, test))
        lines.append(
            f"{_name(choice):<28} {_bytes_per_row(train):>24,} {sizes[0]:>18,} {sizes[1]:>14,} "
            f"{sum(sizes) / 1e6:>12,.1f} {shards:>7,}"
            + ("  <- configured" if choice == settings else "")
        )
    lines.append(
        f"\n{dataset.train.num_samples:,} training images in {views.num_views + 1} views, "
        f"{dataset.eval.num_samples:,} test images in the clean one; "
        f"{dataset.num_classes} classes, {head.in_features} features of {arch}. "
        + ("Before zstd, which saves about a tenth." if settings.compression == "zstd" else "")
    )
    return "\n".join(lines).rstrip()


def _choices(settings: CacheTeacherConfig, num_classes: int) -> list[CacheTeacherConfig]:
    """What could be kept, and what is configured."""
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


def _manifest(
    settings: CacheTeacherConfig, beton: Beton, views: ViewSpec, head: Linear
) -> CacheManifest:
    """The manifest of a cache that nobody made."""
    identity = CacheIdentity(
        weights="",
        arch="",
        fingerprint=beton.record.fingerprint,
        pixel_digest=beton.record.pixel_digest,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        views=views.as_json(),
        precision="fp32",
        features=settings.features,
        top_k=settings.top_k,
        temperatures=settings.temperatures if settings.top_k else (),
    )
    shape = CacheShape(
        num_views=views.num_views + 1,
        num_samples=beton.num_samples,
        num_classes=head.out_features,
        num_features=head.in_features,
    )
    layout = cache_layout(settings, num_classes=head.out_features, num_features=head.in_features)
    return CacheManifest(id=identity.id, identity=identity, shape=shape, layout=layout)


def _bytes_per_row(manifest: CacheManifest) -> int:
    return sum(spec.row_bytes for spec in view_arrays(manifest))


def _bytes(manifest: CacheManifest) -> int:
    """Of all objects: as they are stored, or before compression without what it makes nothing of
    (the last chunk of a shard is filled up)."""
    shape, specs = manifest.shape, array_specs(manifest).values()
    whole = sum(spec.object_bytes + CRC_BYTES for spec in specs if spec.shard_rows is None)
    if manifest.layout.codec == "zstd":
        return shape.num_views * shape.num_samples * _bytes_per_row(manifest) + whole
    bounds = [manifest.rows_of(shard) for shard in range(manifest.num_shards)]
    return whole + sum(
        shape.num_views * spec.uncompressed_bytes(stop - start)
        for spec in view_arrays(manifest)
        for start, stop in bounds
    )
