"""A workspace of every artefact that commands write, kept as this version wrote it.

    OMP_NUM_THREADS=1 python -m tests.support.golden_workspace

This command writes it again, which only a new format version needs.

`write` runs `heartcut compare` and `heartcut sweep` on small images, and stops one training. Betons
are kept compressed, because FFCV pads them to 16 MiB. The name of the machine is left out.
"""

import contextlib
import lzma
import shutil
from pathlib import Path

import numpy as np

from pipeline.artefacts.unfinished_run import UNFINISHED
from pipeline.errors import Terminated
from stages import compare, train_student
from stages.config.file import load_config
from stages.config.root import Config
from stages.sweep import run as sweep
from tests.support.golden import GOLDEN
from tests.support.image_folders import save_split, textures
from tests.support.learners import stopping_after

WORKSPACE = GOLDEN / "workspace-v1"
UNDER_WAY = WORKSPACE / "under-way"
"""The folder of the stopped training, which a finished run in the workspace replaced."""
CONFIG = "golden.toml"
STEPS_BEFORE_STOP = 5
"""An epoch has three."""
TOML = """\
workspace = "."

[prepare]
source = "folder"
path = "images"
held_out_fraction = 0.3

[views]
padding = 1
flip = false
count = 1

[train_teacher]
arch = "tests.support.networks:Small"
epochs = 3
batch_size = 8
lr = 0.1
precision = "fp32"

[cache_teacher]
precision = "fp32"

[select]
strategy = "influence"
fraction = 0.75

[select.influence]
l2 = 0.01

[train_student]
arch = "tests.support.networks:Small"
epochs = 3
batch_size = 8
lr = 0.1
precision = "fp32"

[compare]
seeds = [0]

[compare.variants]
"CE" = ["train_student.distil=false"]
"FitNet" = ["train_student.method=fitnet"]
"KD" = []

[sweep]
name = "rates"
seeds = [0, 1]
baseline = "lr=0.05"

[sweep.axes]
"train_student.lr" = [0.05, 0.1]

[sweep.points]
"no cache" = ["select.cache=absent"]
"""


def images(count: int, *, seed: int):
    """Textures of 8 x 8 pixels in which a colour for each class is brighter."""
    drawn = textures(count, seed=seed, size=8)
    of_class = np.arange(count) % 3
    drawn[np.arange(count), ..., of_class] |= 128
    return drawn


def golden_config(workspace: Path) -> Config:
    """The configuration of a golden workspace, for commands that run in it."""
    return load_config(workspace / CONFIG, overrides=[])


def make(workspace: Path) -> None:
    """Run the commands whose artefacts are the golden workspace."""
    save_split(workspace / "images/train", images(33, seed=1))
    save_split(workspace / "images/test", images(9, seed=2))
    (workspace / CONFIG).write_text(TOML)
    with contextlib.chdir(workspace):
        config = golden_config(Path())
        compare.execute(config)
        sweep.execute(config)
        _write_under_way(config)


def write(workspace: Path) -> None:
    """Write the golden workspace of this version."""
    make(workspace)
    for beton in workspace.glob("data/*.beton"):
        beton.with_suffix(".beton.xz").write_bytes(lzma.compress(beton.read_bytes()))
        beton.unlink()
    for events in workspace.rglob("events.out.tfevents.*"):
        events.rename(events.with_name("events.out.tfevents.0.golden"))
    for lock in workspace.rglob("lock"):
        lock.unlink()


def _write_under_way(config: Config) -> None:
    """Train one student of the comparison again, stop it, and keep its folder."""
    finished = train_student.execute(config).path
    aside = finished.rename(finished.with_name("finished"))
    with stopping_after(STEPS_BEFORE_STOP), contextlib.suppress(Terminated):
        train_student.execute(config)
    under_way = Path("under-way") / f"{finished.name}{UNFINISHED}"
    under_way.parent.mkdir()
    finished.with_name(under_way.name).rename(under_way)
    aside.rename(finished)


def unpacked(workspace: Path) -> Path:
    """A copy of the golden workspace that commands can use."""
    shutil.copytree(WORKSPACE, workspace, ignore=shutil.ignore_patterns("*.xz", "under-way"))
    for packed in WORKSPACE.glob("data/*.xz"):
        (workspace / "data" / packed.stem).write_bytes(lzma.decompress(packed.read_bytes()))
    return workspace


if __name__ == "__main__":
    shutil.rmtree(WORKSPACE, ignore_errors=True)
    write(WORKSPACE)
