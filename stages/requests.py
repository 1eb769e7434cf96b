"""What a configuration asks for: identities that need no teacher, and where they lead."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from pipeline.artefacts.cache.arrays import default_shard_rows
from pipeline.artefacts.cache.record import CacheLayout
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.repair_record import RepairIdentity
from pipeline.artefacts.run import Inputs, run_id, run_path
from pipeline.artefacts.scores import ScoreIdentity
from pipeline.artefacts.selection import SelectionIdentity
from pipeline.artefacts.soft_labels import SoftLabelIdentity
from pipeline.data.resized_crops import ResizedCropSpec
from pipeline.data.view_specs import Views
from pipeline.data.views import ALL, ViewSpec
from pipeline.errors import ArtefactMismatch, ConfigError
from pipeline.provenance import Json, identity
from pipeline.runtime.device import resolve_runtime
from stages.config.root import CacheTeacherConfig, Config, ViewsConfig
from stages.config.select import INFLUENCE_STRATEGIES, SelectConfig
from stages.config.training import METHOD_TABLES, OptimiserConfig, TrainStudentConfig

_WITHOUT_QUOTA = ("class-balanced", "all", "none")
_WITHOUT_EFFECT_ON_NUMBERS = {"workers", "name", "selection", "soft_labels", "checkpoint_minutes"}
_WEIGHTS = ("lambda_ce", "lambda_kd", "lambda_feature")


def view_spec(config: ViewsConfig) -> Views:
    """The views that a configuration names."""
    if config.kind == "rrc-flip":
        assert config.size is not None  # the config refused this
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


def cache_request(config: Config, dataset: Dataset) -> str:
    """Hash of everything that decides which cache a configuration means, but the weights."""
    settings = config.cache_teacher
    parts: dict[str, Json] = {
        "teacher": settings.model_dump(
            mode="json", exclude={"workers", "batch_size", "shard_rows", "compression"}
        ),
        "precision": resolve_runtime(settings.precision).precision,
        "views": view_spec(config.views).as_json(),
        "dataset": dataset.record.id,
    }
    if settings.checkpoint is None:
        parts["run"] = teacher_run_path(config, dataset).name
    return identity("cache_request", parts)


def cache_layout(config: CacheTeacherConfig, *, num_classes: int, num_features: int) -> CacheLayout:
    """How a new cache is cut into objects.

    Raises:
        ConfigError: if more logits are to be kept than there are.
    """
    if config.top_k > num_classes:
        raise ConfigError(
            f"cache_teacher.top_k is {config.top_k} and there are {num_classes} classes (expected "
            "at most as many). Set `cache_teacher.top_k = 0` to keep all logits."
        )
    widest = max(config.top_k or num_classes, num_features if config.features else 0)
    rows = config.shard_rows or default_shard_rows(2 * widest)
    return CacheLayout(shard_rows=rows, codec=config.compression)


def soft_label_identity(
    config: SelectConfig, cache: TeacherCache, dataset: Dataset
) -> SoftLabelIdentity:
    """What the soft labels of a configuration depend on."""
    num_augmented = cache.shape.num_views - 1
    if config.soft_views == "augmented" and num_augmented == 0:
        raise ConfigError(
            f"select.soft_views is 'augmented' and {cache.path} has the clean view only. "
            'Set `select.soft_views = "clean"`, or cache views (`views.count`).'
        )
    revises = config.revision in ("wrong", "all")
    return SoftLabelIdentity(
        cache=cache.id,
        root=cache.root,
        rows=dataset.train.samples.in_order,
        # A refitted head gives all logits, whatever the cache keeps of the teacher's.
        top_k=0 if config.repair == "head" else cache.manifest.identity.top_k,
        accepted=tuple(sorted(config.accept_mismatch)),
        view_spec=cache.manifest.identity.views,
        revision=config.revision,
        eta=config.eta if revises else None,
        temperature=config.temperature,
        revise_at=config.revise_at or config.temperature,
        standardise=config.standardise,
        views=(0,) if config.soft_views == "clean" else tuple(range(1, num_augmented + 1)),
        repair=repair_identity(config, dataset),
    )


def repair_identity(config: SelectConfig, dataset: Dataset) -> RepairIdentity | None:
    """How the teacher's logits are repaired, if they are."""
    if config.repair == "none":
        return None
    return RepairIdentity(
        folds=config.influence.folds, seed=config.seed, held_out=dataset.held_out_digest
    )


def score_identity(config: Config, cache: TeacherCache, dataset: Dataset) -> ScoreIdentity | None:
    """What the influence scores of a configuration depend on; None where none are read."""
    select = config.select
    if select.strategy not in INFLUENCE_STRATEGIES:
        return None
    influence = select.influence
    settings: dict[str, float | int | str | None] = {
        name: int(value) if isinstance(value, bool) else value
        for name, value in influence.model_dump(exclude={"external", "proxy"}).items()
    }
    for name, place in (("external", influence.external), ("proxy", influence.proxy)):
        settings[name] = None if place is None else TeacherCache.open(place).root
    settings["target"] = influence_target(select, cache)
    settings["seed"] = select.seed
    settings["undistil_order"] = int(select.strategy == "param-change")
    revises = influence.labels == "revised"
    return ScoreIdentity(
        cache=cache.id,
        root=cache.root,
        rows=dataset.train.samples.in_order,
        held_out=dataset.held_out_digest,
        accepted=tuple(sorted(select.accept_mismatch)),
        settings=settings,
        revision={"revision": select.revision, "eta": select.eta} if revises else None,
        repair=select.repair,
    )


def influence_target(
    config: SelectConfig, cache: TeacherCache
) -> Literal["held-out", "cross-fit", "external"]:
    """Whose loss is predicted."""
    wanted = config.influence.target
    if wanted != "auto":
        return wanted
    return "cross-fit" if cache.summary.target_in_sample else "held-out"


def selection_identity(config: Config, cache: TeacherCache, dataset: Dataset) -> SelectionIdentity:
    """What the selection table of a configuration depends on."""
    settings, strategy = config.select, config.select.strategy
    by_score = strategy in ("influence", "class-balanced")
    is_drawn = strategy == "beta"
    scores = score_identity(config, cache, dataset)
    return SelectionIdentity(
        cache=cache.id,
        held_out=dataset.held_out_digest,
        soft_labels=soft_label_identity(settings, cache, dataset).id,
        strategy=strategy,
        score=settings.score if by_score else None,
        fraction=settings.fraction,
        threshold=settings.threshold,
        standard_errors=settings.num_errors if strategy == "influence" else None,
        class_quota=None if strategy in _WITHOUT_QUOTA else settings.class_quota,
        beta=(settings.beta_mean, settings.beta_concentration) if is_drawn else None,
        seed=settings.seed,
        scores=None if scores is None else scores.id,
    )


def training_settings(config: OptimiserConfig) -> dict[str, Json]:
    """The settings of a training that its numbers depend on."""
    settings: dict[str, Json] = config.model_dump(mode="json", exclude=_WITHOUT_EFFECT_ON_NUMBERS)
    settings["precision"] = resolve_runtime(config.precision).precision
    if not config.resolutions:  # a run from before there were any is still the same run
        settings.pop("resolutions")
    if not settings.get("label_noise", True):
        settings.pop("label_noise")
    return settings


def student_settings(config: TrainStudentConfig) -> dict[str, Json]:
    """`training_settings` of a student: weights as they are used, no method's but its own."""
    settings = training_settings(config)
    for table in set(METHOD_TABLES) - {config.method if config.distil else ""}:
        settings.pop(table)
    weights = dict(zip(_WEIGHTS, config.weights, strict=True))
    settings.update(weights if config.distil else dict.fromkeys(("method", *_WEIGHTS)))
    return settings


def teacher_run_path(config: Config, dataset: Dataset) -> Path:
    """Where the teacher that this configuration trains lies."""
    settings = config.train_teacher
    inputs = Inputs(dataset=dataset.record.id, cache=None, soft_labels=None, selection=None)
    parts = {**training_settings(settings), "views": fresh_views(config).as_json()}
    return run_path(
        config.runs_folder, name=settings.name, seed=settings.seed, id=run_id(parts, inputs)
    )


def fresh_views(config: Config) -> Views:
    """The augmentation of `views` without a cache: every sample draws anew in every epoch."""
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
        ArtefactMismatch: if the views need images of one size, and these are not.
    """
    if isinstance(views, ResizedCropSpec):
        return views.size, views.size
    size, record = dataset.record.image_size, dataset.record
    if size is None:
        raise ArtefactMismatch(
            f"{dataset.folder} has images of {record.heights[0]} to {record.heights[1]} x "
            f"{record.widths[0]} to {record.widths[1]} pixels (expected one size, for views of "
            "kind 'crop-flip'). Set `views.kind = \"rrc-flip\"`, or `prepare.resize` and prepare "
            "again."
        )
    return size
