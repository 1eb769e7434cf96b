"""The views of a configuration, cached or not, and the size of the images that networks see."""

from dataclasses import replace

from pipeline.artefacts.dataset import Dataset
from pipeline.data.resized_crops import ResizedCropSpec
from pipeline.data.view_specs import Views
from pipeline.data.views import ALL, ViewSpec
from pipeline.errors import ArtefactMismatch
from stages.config.prepare import ViewsConfig
from stages.config.root import Config


def view_spec(config: ViewsConfig) -> Views:
    """The cached views of a configuration."""
    if config.kind == "rrc-flip":
        assert config.size is not None  # checked by the configuration
        assert config.count != "all"
        return ResizedCropSpec(
            size=config.size,
            scale=config.scale,
            ratio=config.ratio,
            flip=config.flip,
            centre=config.centre,
            count=config.count,
            seed=config.seed,
        )
    count = ALL if config.count == "all" else config.count
    return ViewSpec(padding=config.padding, flip=config.flip, count=count, seed=config.seed)


def fresh_views(config: Config) -> Views:
    """The augmentation of `views` without a cache: every epoch draws new views."""
    views = config.views
    spec = view_spec(views)
    if isinstance(spec, ResizedCropSpec):
        return replace(spec, count=ALL, seed=0)
    if views.padding == 0 and not views.flip:
        return ViewSpec()
    return ViewSpec(padding=views.padding, flip=views.flip, count=ALL)


def seen_size(views: Views, dataset: Dataset) -> tuple[int, int]:
    """Height and width of the images that networks see.

    Raises:
        ArtefactMismatch: if the views need images of one size, and the sizes differ.
    """
    if isinstance(views, ResizedCropSpec):
        return views.size, views.size
    size, record = dataset.record.image_size, dataset.record
    if size is None:
        raise ArtefactMismatch(
            f"{dataset.folder} has images of {record.heights[0]} to {record.heights[1]} x "
            f"{record.widths[0]} to {record.widths[1]} pixels (expected one size, for views of "
            "kind 'crop-flip'). Set `views.kind = \"rrc-flip\"`, or set `prepare.resize` and run "
            "`heartcut prepare`."
        )
    return size
