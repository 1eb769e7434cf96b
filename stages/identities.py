"""The identities of the artefacts of a configuration; none needs the teacher."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.run import Inputs, run_id, run_path
from pipeline.artefacts.scores import ScoreIdentity
from pipeline.artefacts.selection import SelectionIdentity
from pipeline.artefacts.soft_labels import RepairIdentity, SoftLabelIdentity
from pipeline.errors import ConfigError
from pipeline.provenance import Json, identity
from pipeline.runtime.device import resolve_runtime
from stages.config.cache_teacher import CacheTeacherConfig
from stages.config.root import Config
from stages.config.select import INFLUENCE_STRATEGIES, SelectConfig
from stages.config.training import METHOD_TABLES, OptimiserConfig, TrainStudentConfig
from stages.views import fresh_views, view_spec

_WITHOUT_QUOTA = ("class-balanced", "all", "none")
_WITHOUT_EFFECT_ON_NUMBERS = {"workers", "name", "selection", "soft_labels", "checkpoint_minutes"}
_WITHOUT_EFFECT_ON_CACHE = {"workers", "batch_size", "shard_rows", "compression", "check_teacher"}
_ADDED_TO_CACHE = {"checkpoint_key": "", "class_order": "", "channels": "rgb"}
"""Settings added later, with their defaults; older requests keep their hash."""
_WEIGHTS = ("lambda_ce", "lambda_kd", "lambda_feature")


def cache_request(config: Config, dataset: Dataset) -> str:
    """Hash of everything but the weights that determines the cache of a configuration."""
    settings = config.cache_teacher
    parts: dict[str, Json] = {
        "teacher": settings.model_dump(
            mode="json", exclude=_WITHOUT_EFFECT_ON_CACHE | _at_default(settings)
        ),
        "precision": resolve_runtime(settings.precision).precision,
        "views": view_spec(config.views).as_json(),
        "dataset": dataset.record.id,
    }
    if settings.checkpoint is None:
        parts["run"] = teacher_run_path(config, dataset).name
    return identity("cache_request", parts)


def _at_default(settings: CacheTeacherConfig) -> set[str]:
    return {n for n, default in _ADDED_TO_CACHE.items() if getattr(settings, n) == default}


@dataclass(frozen=True, kw_only=True)
class Identities:
    """The identities of what `select` makes; computed once per command and passed on."""

    soft_labels: SoftLabelIdentity
    scores: ScoreIdentity | None
    """None if the strategy reads no influence scores."""
    selection: SelectionIdentity

    @classmethod
    def of(
        cls,
        config: SelectConfig,
        dataset: Dataset,
        cache: TeacherCache,
        *,
        external: TeacherCache | None,
        proxy: TeacherCache | None,
    ) -> "Identities":
        """Compute the identities from the settings of select and the open caches that they name."""
        soft_labels = soft_label_identity(config, cache, dataset)
        scores = None
        if config.strategy in INFLUENCE_STRATEGIES:
            roots = {
                "external": None if external is None else external.root,
                "proxy": None if proxy is None else proxy.root,
            }
            scores = _score_identity(config, cache, dataset, roots=roots)
        return cls(
            soft_labels=soft_labels,
            scores=scores,
            selection=_selection_identity(
                config,
                cache,
                dataset,
                soft_labels=soft_labels.id,
                scores=None if scores is None else scores.id,
            ),
        )


def soft_label_identity(
    config: SelectConfig, cache: TeacherCache, dataset: Dataset
) -> SoftLabelIdentity:
    """Everything that the soft labels of a configuration depend on.

    Raises:
        ConfigError: if labels of augmented views are wanted and the cache has none.
    """
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
        # A refitted head gives all logits, even if the cache keeps the top ones only.
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
    """Everything that the repaired head depends on; None without a repair."""
    if config.repair == "none":
        return None
    return RepairIdentity(
        folds=config.influence.folds, seed=config.seed, held_out=dataset.held_out_digest
    )


def _score_identity(
    config: SelectConfig, cache: TeacherCache, dataset: Dataset, *, roots: Mapping[str, str | None]
) -> ScoreIdentity:
    """Everything that influence scores depend on; ``roots`` are the other caches' root hashes."""
    influence = config.influence
    settings: dict[str, float | int | str | None] = {
        name: int(value) if isinstance(value, bool) else value
        for name, value in influence.model_dump(exclude=set(roots)).items()
    }
    settings |= roots
    settings["target"] = influence_target(config, cache)
    settings["seed"] = config.seed
    settings["undistil_order"] = int(config.strategy == "param-change")
    revises = influence.labels == "revised"
    return ScoreIdentity(
        cache=cache.id,
        root=cache.root,
        rows=dataset.train.samples.in_order,
        held_out=dataset.held_out_digest,
        accepted=tuple(sorted(config.accept_mismatch)),
        settings=settings,
        revision={"revision": config.revision, "eta": config.eta} if revises else None,
        repair=config.repair,
    )


def _selection_identity(
    config: SelectConfig,
    cache: TeacherCache,
    dataset: Dataset,
    *,
    soft_labels: str,
    scores: str | None,
) -> SelectionIdentity:
    strategy = config.strategy
    return SelectionIdentity(
        cache=cache.id,
        held_out=dataset.held_out_digest,
        soft_labels=soft_labels,
        strategy=strategy,
        score=config.score if strategy in ("influence", "class-balanced") else None,
        fraction=config.fraction,
        threshold=config.threshold,
        standard_errors=config.num_errors if strategy == "influence" else None,
        class_quota=None if strategy in _WITHOUT_QUOTA else config.class_quota,
        beta=(config.beta_mean, config.beta_concentration) if strategy == "beta" else None,
        seed=config.seed,
        scores=scores,
    )


def influence_target(
    config: SelectConfig, cache: TeacherCache
) -> Literal["held-out", "cross-fit", "external"]:
    """The samples whose loss is predicted; "auto" is resolved."""
    wanted = config.influence.target
    if wanted != "auto":
        return wanted
    return "cross-fit" if cache.summary.target_in_sample else "held-out"


def training_settings(config: OptimiserConfig) -> dict[str, Json]:
    """The settings that the numbers of a training depend on."""
    settings: dict[str, Json] = config.model_dump(mode="json", exclude=_WITHOUT_EFFECT_ON_NUMBERS)
    settings["precision"] = resolve_runtime(config.precision).precision
    if not config.resolutions:  # added later: older runs keep their identity
        settings.pop("resolutions")
    if not settings.get("label_noise", True):
        settings.pop("label_noise")
    return settings


def student_settings(config: TrainStudentConfig) -> dict[str, Json]:
    """`training_settings` of a student, with the weights in use and only its method's table."""
    settings = training_settings(config)
    for table in set(METHOD_TABLES) - {config.method if config.distil else ""}:
        settings.pop(table)
    weights = dict(zip(_WEIGHTS, config.weights, strict=True))
    settings.update(weights if config.distil else dict.fromkeys(("method", *_WEIGHTS)))
    return settings


def teacher_run_path(config: Config, dataset: Dataset) -> Path:
    """Folder of the teacher that this configuration trains."""
    settings = config.train_teacher
    inputs = Inputs(dataset=dataset.record.id, cache=None, soft_labels=None, selection=None)
    parts = {**training_settings(settings), "views": fresh_views(config).as_json()}
    return run_path(
        config.runs_folder, name=settings.name, seed=settings.seed, id=run_id(parts, inputs)
    )
