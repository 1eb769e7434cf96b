"""Batches of a single sample, for networks that cannot train on one.

Batch normalisation needs two values per channel. Networks for large images see one where their last
maps have 1 x 1 pixels, in a batch of one sample.
"""

import logging
from collections.abc import Sequence

from pipeline.errors import ConfigError
from pipeline.models.networks.classifier import Classifier
from pipeline.models.probing import needs_several_images
from stages.config.training import OptimiserConfig, TrainTeacherConfig

logger = logging.getLogger(__name__)


def skips_single(
    model: Classifier, settings: OptimiserConfig, *, num_samples: int, sizes: Sequence[int]
) -> bool:
    """Decide if the last batch of an epoch is left out because it has one sample.

    Args:
        model: network on its device, not yet joined with other ranks.
        settings: settings of the training.
        num_samples: samples that are trained on.
        sizes: height and width of the images of the views.

    Raises:
        ConfigError: if the network cannot train on one sample and every batch has one.
    """
    if num_samples % settings.batch_size != 1 and settings.batch_size != 1:
        return False
    sides = [side for _, side in settings.resolutions]
    height, width = [min(sides)] * 2 if sides else sizes
    if not needs_several_images(model, (height, width)):
        return False
    reason = f"{model.arch} cannot train on one image of {height} x {width} pixels at a time"
    if settings.batch_size == 1:
        table = "train_teacher" if isinstance(settings, TrainTeacherConfig) else "train_student"
        raise ConfigError(
            f"{table}.batch_size is 1, and {reason} (expected at least 2). Set a larger batch_size."
        )
    if num_samples == 1:
        raise ConfigError(
            f"there is 1 sample to train on, and {reason} (expected at least 2). Prepare more "
            "images, or hold out fewer."
        )
    logger.info("%s: a last batch of one sample is left to the next epoch", reason)
    return True
