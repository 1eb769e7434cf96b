"""The frozen teacher of a configuration: a checkpoint, or a run of `train-teacher`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.run import Run
from pipeline.errors import ConfigError
from pipeline.models.checkpoints import load_into, load_weights, weights_digest
from pipeline.models.class_map import keep_classes, read_class_names, teacher_rows
from pipeline.models.probing import require_image_size
from pipeline.models.zoo import build
from pipeline.provenance import identity
from pipeline.runtime.device import Runtime
from pipeline.teacher.frozen import Teacher
from stages.config.cache_teacher import CacheTeacherConfig
from stages.config.root import Config
from stages.config.types import Triple
from stages.identities import teacher_run_path
from stages.views import seen_size, view_spec


def load_teacher(config: Config, dataset: Dataset, runtime: Runtime) -> Teacher:
    """Build the network, load its weights, and restrict it to the classes of the data set.

    Raises:
        ConfigError: if the classes do not match, or the network cannot take images of this size.
        ArtefactNotFound: if the checkpoint or run does not exist.
        ArtefactMismatch: if the checkpoint does not fit.
    """
    origin = _origin(config, dataset)
    settings = config.cache_teacher
    weights = load_weights(origin.source, key=settings.checkpoint_key)
    model = build(origin.arch, num_classes=origin.num_classes, head=origin.head)
    require_image_size(model, seen_size(view_spec(config.views), dataset))
    digest = weights_digest(load_into(model, weights, source=origin.source))
    if list(origin.rows) != list(range(origin.num_classes)):
        keep_classes(model, origin.rows)
        digest = weights_digest(model.state_dict())
    if settings.channels == "bgr":
        digest = identity("teacher.bgr", digest)
    model = model.eval().requires_grad_(False).to(runtime.device)
    return Teacher(
        model=model.to(memory_format=torch.channels_last),
        digest=digest,
        mean=origin.mean,
        std=origin.std,
        target_in_sample=origin.saw_held_out,
        description=origin.description,
        is_bgr=settings.channels == "bgr",
    )


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """Source and properties of a teacher."""

    source: Path
    arch: str
    head: str
    num_classes: int
    """Number of rows of the head in the checkpoint."""
    rows: Sequence[int]
    """Rows of the data set's classes, in the order of the classes."""
    mean: Triple
    std: Triple
    saw_held_out: bool
    description: str


def _origin(config: Config, dataset: Dataset) -> _Origin:
    settings = config.cache_teacher
    if settings.checkpoint is None:
        return _own_run(config, dataset)
    _require_unit_pixels(settings)
    num_classes, rows = classes_of_head(settings, dataset)
    return _Origin(
        source=settings.checkpoint,
        arch=settings.arch,
        head=settings.head,
        num_classes=num_classes,
        rows=rows,
        mean=settings.mean or dataset.record.mean,
        std=settings.std or dataset.record.std,
        saw_held_out=settings.trained_on_held_out,
        description=f"{settings.arch} of {settings.checkpoint.name}",
    )


def _own_run(config: Config, dataset: Dataset) -> _Origin:
    run = Run.open(teacher_run_path(config, dataset))
    return _Origin(
        source=run.weights,
        arch=run.result.arch,
        head=config.train_teacher.head,
        num_classes=dataset.num_classes,
        rows=range(dataset.num_classes),
        mean=run.result.mean,
        std=run.result.std,
        saw_held_out=run.result.held_out != dataset.held_out_digest,
        description=f"{run.result.arch} of {run.path.name}",
    )


def _require_unit_pixels(settings: CacheTeacherConfig) -> None:
    """Reject a normalisation that is not for pixels from 0 to 1.

    Raises:
        ConfigError: if a mean is not from 0 to 1, or a deviation not above 0 and at most 1.
    """
    if settings.mean is None or settings.std is None:
        return
    wrong = {
        "mean": None if all(0 <= value <= 1 for value in settings.mean) else settings.mean,
        "std": None if all(0 < value <= 1 for value in settings.std) else settings.std,
    }
    found = {f"cache_teacher.{name}": list(part) for name, part in wrong.items() if part}
    if found:
        larger = {name: part for name, part in found.items() if min(part) >= 0 and max(part) > 1}
        divided = " and ".join(
            f"`{name} = {[round(value / 255, 5) for value in part]}`"
            for name, part in larger.items()
        )
        raise ConfigError(
            f"{' and '.join(f'{name} is {part}' for name, part in found.items())} (expected "
            "numbers for pixels from 0 to 1: a mean from 0 to 1, a deviation above 0 and at most "
            "1). "
            + (
                f"For pixels from 0 to 255 divide by 255: set {divided}."
                if divided
                else "Correct it."
            )
        )


def classes_of_head(settings: CacheTeacherConfig, dataset: Dataset) -> tuple[int, list[int]]:
    """Number of rows of the checkpoint's head, and the rows of the data set's classes."""
    names = [] if settings.class_names is None else read_class_names(settings.class_names)
    num_classes = settings.num_classes or len(names) or dataset.num_classes
    rows = teacher_rows(
        dataset.record.class_names,
        num_classes=num_classes,
        teacher_names=names,
        class_map=settings.class_map,
        order=settings.class_order,
    )
    return num_classes, rows
