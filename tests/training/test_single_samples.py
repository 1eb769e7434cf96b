"""An epoch never ends in a batch of one sample for a network that cannot train on one."""

import json

import numpy as np
import pytest
import torch

from pipeline.data.loaders import BatchLoader
from pipeline.errors import ConfigError
from pipeline.models.probing import needs_several_images
from pipeline.models.zoo import build
from pipeline.runtime.ranks import Ranks
from stages import train_student, train_teacher
from stages.config.file import with_overrides
from tests.support.image_folders import folder_config

RESNET18 = "torchvision:resnet18"
"""Its last maps have 1 x 1 pixels where the images have up to 32 x 32."""


@pytest.fixture(scope="module")
def network():
    return build(RESNET18, num_classes=3)


def test_a_network_is_tried_on_images_of_the_size(network):
    assert needs_several_images(network, (16, 16))
    assert not needs_several_images(network, (64, 64))
    assert not needs_several_images(build("resnet8a", num_classes=3), (16, 16))


def test_trying_a_network_changes_neither_it_nor_the_random_numbers(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    needs_several_images(network.eval(), (16, 16))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network.training


@pytest.mark.parametrize("world", [1, 2])
def test_the_sample_that_is_left_out_is_another_one_in_every_epoch(prepared, world):
    rows = np.arange(13)
    missing = []
    for epoch in range(6):
        seen = []
        for rank in range(world):
            loader = BatchLoader(
                prepared.train,
                batch_size=4,
                rows=rows,
                order="random",
                skips_single=True,
                ranks=Ranks(rank=rank, world=world),
            )
            assert (loader.num_samples, loader.num_batches) == (12, 3)
            seen += [int(index) for batch in loader.epoch(epoch) for index in batch.indices]
        assert len(seen) == len(set(seen)) == 12
        missing += set(rows) - set(seen)
    assert len(missing) == 6
    assert len(set(missing)) > 1


@pytest.mark.parametrize("num_rows", [12, 14])
def test_a_last_batch_of_another_size_is_kept(prepared, num_rows):
    loader = BatchLoader(prepared.train, batch_size=4, rows=np.arange(num_rows), skips_single=True)
    assert loader.num_samples == num_rows
    assert sum(len(batch) for batch in loader.epoch(0)) == num_rows


def executed(stage, prepared, image_root, *, arch, batch_size, workspace):
    table = "train_student" if stage is train_student else "train_teacher"
    workspace.mkdir()
    (workspace / "data").symlink_to(prepared.folder)
    settings = [f"{table}.arch={arch}", f"{table}.epochs=2", f"{table}.batch_size={batch_size}"]
    settings += ["train_student.distil=false"] if stage is train_student else []
    return stage.execute(with_overrides(folder_config(workspace, image_root), settings))


@pytest.mark.parametrize("stage", [train_student, train_teacher], ids=["student", "teacher"])
def test_trainings_with_one_sample_more_than_their_batches_end(
    prepared, image_root, tmp_path, stage, caplog
):
    caplog.set_level("INFO")
    batch_size = len(prepared.training) - 1
    for arch, left in ((RESNET18, 1), ("resnet8a", 0)):
        run = executed(
            stage,
            prepared,
            image_root,
            arch=arch,
            batch_size=batch_size,
            workspace=tmp_path / str(left),
        )
        lines = (run.path / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == 2
        assert all(np.isfinite(json.loads(line)["training_loss"]) for line in lines)
    notes = [text for text in caplog.messages if "left to the next epoch" in text]
    assert len(notes) == 1
    assert RESNET18 in notes[0]


@pytest.mark.parametrize("stage", [train_student, train_teacher], ids=["student", "teacher"])
def test_batches_of_one_are_rejected_for_such_a_network(prepared, image_root, tmp_path, stage):
    with pytest.raises(ConfigError, match=r"batch_size is 1, and torchvision:resnet18 cannot tr"):
        executed(
            stage, prepared, image_root, arch=RESNET18, batch_size=1, workspace=tmp_path / "work"
        )
    assert not list((tmp_path / "work").glob("runs/*"))
