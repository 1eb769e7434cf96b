"""Label noise: the requested fraction of every class gets a wrong label."""

import numpy as np
import pytest

from pipeline.artefacts.dataset import Samples
from pipeline.data.label_noise import noisy_labels
from stages import train_teacher
from stages.config.file import with_overrides


def samples(count: int = 4000, num_classes: int = 5) -> Samples:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 256, (count, 16), dtype=np.uint8)
    return Samples(keys=keys, labels=np.arange(count) % num_classes, pixels=keys)


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_that_fraction_of_every_class_is_wrong_evenly_over_the_others(share):
    own = samples()
    found = noisy_labels(own, share=share, num_classes=5, seed=0)
    for label in range(5):
        rows = own.labels == label
        counts = np.bincount(found[rows], minlength=5)
        assert counts[label] == rows.sum() - round(share * rows.sum())
        others = np.delete(counts, label)
        expected = share * rows.sum() / 4
        assert np.abs(others - expected).max() < 5 * expected**0.5


def test_labels_follow_the_content_and_the_seed():
    own = samples()
    found = noisy_labels(own, share=0.3, num_classes=5, seed=0)
    order = np.random.default_rng(1).permutation(len(own))
    again = noisy_labels(own.rows(order), share=0.3, num_classes=5, seed=0)
    assert np.array_equal(again, found[order])
    assert not np.array_equal(noisy_labels(own, share=0.3, num_classes=5, seed=1), found)


def test_a_teacher_of_wrong_labels_is_another_run_and_worse(digits_copy):
    sound = with_overrides(digits_copy, ["train_teacher.epochs=4", "train_teacher.fraction=1"])
    spoiled = with_overrides(sound, ["train_teacher.label_noise=0.9"])
    good, bad = (train_teacher.execute(config).result for config in (sound, spoiled))
    assert good.id != bad.id
    assert good.test_accuracy > bad.test_accuracy + 0.2


def test_a_noise_of_zero_keeps_the_identity_of_a_teacher(digits):
    config = with_overrides(digits, ["train_teacher.label_noise=0"])
    from pipeline.artefacts.dataset import Dataset
    from stages.identities import teacher_run_path

    path = teacher_run_path(config, Dataset.open(digits.data_folder))
    assert path.exists()
    assert "label_noise" not in (path / "config.toml").read_text()
