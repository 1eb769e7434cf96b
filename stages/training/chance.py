"""Warning about a training that ended no better than a guess, as one of very few steps does."""

import logging

from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.run import RunResult
from pipeline.teacher.diagnosis import best_guess, highest_guess
from stages.config.training import OptimiserConfig, TrainTeacherConfig
from stages.text import counted, percent

logger = logging.getLogger(__name__)

FEW_STEPS = 200


def warn_of_chance(
    settings: OptimiserConfig, result: RunResult, dataset: Dataset, *, num_steps: int
) -> None:
    """Warn if the test accuracy is no better than a guess, with the steps and the settings."""
    guess = guess_of(dataset)
    if not is_a_guess(result, dataset):
        return
    batch = min(settings.batch_size, result.num_training_samples)
    table = "train_teacher" if isinstance(settings, TrainTeacherConfig) else "train_student"
    if num_steps < FEW_STEPS:
        advice = (
            f"Set `{table}.batch_size` below {batch} or `{table}.epochs` above {settings.epochs} "
            f"for more steps, with a `{table}.lr` for that batch."
        )
    else:
        advice = f"Set another `{table}.lr` (now {settings.lr:g}) or `{table}.schedule`."
    logger.warning(
        "%s is no better than a guess after %s of %s: test accuracy %s (a guess: %s). %s",
        result.arch,
        counted(num_steps, "step"),
        counted(batch, "image"),
        percent(result.test_accuracy),
        percent(guess),
        advice,
    )


def is_a_guess(result: RunResult, dataset: Dataset) -> bool:
    """True if the test accuracy is no better than a guess, within the error of the test images."""
    return result.test_accuracy <= highest_guess(guess_of(dataset), len(dataset.eval.samples))


def guess_of(dataset: Dataset) -> float:
    """Accuracy of the best guess on the test images."""
    return best_guess(dataset.eval.samples.labels, num_classes=dataset.num_classes)
