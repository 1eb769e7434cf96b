"""The demo on the splits that its page shows, and the choice of its settings on other splits.

python -m benchmarks.study.demo choose   # tune the student without a teacher, then pick the images
python -m benchmarks.study.demo run      # train the demo's students on the shown splits
python -m benchmarks.study.demo render   # stored results -> tables of docs/results/demo.md

A split is a seed of `scripts/demo_images.py`. Work is done below work/demo-splits; a repeated
command resumes there. Results are stored in docs/results/demo:

    baseline.csv    accuracy without a teacher, by peak rate and epochs, on images of no team
    images.csv      test accuracy of all variants, by noise and number of training images
    students.csv    test accuracy of the demo's students on the shown splits

Run it with OMP_NUM_THREADS=1, as `make demo` does.
"""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TypeAlias

import pandas as pd
from sklearn.datasets import load_digits

from benchmarks.study.demo_tables import KEPT, PAGE, ROOT, rendered
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.run import Run
from pipeline.provenance import identity, short
from scripts import demo_images
from scripts.demo_images import COUNTS, NOISE, OTHER_TEST, SEED, TEST, TRAIN
from stages import compare, prepare, train_teacher
from stages.caches import Caches
from stages.config.file import load_config, with_overrides
from stages.config.root import Config
from stages.config.types import Triple

WORK = ROOT / "work" / "demo-splits"
CONFIG, TEACHER_CONFIG = (ROOT / "configs" / f"{name}.toml" for name in ("demo", "demo-teacher"))

SHOWN = (SEED, 1, 2)
"""Splits of the page, the demo's first."""
OTHERS = (10, 11, 12)
"""Splits on which the settings were chosen."""
SEEDS = "compare.seeds=[0, 1]"
"""Seeds of the students that noise and number of images were chosen by."""
SCHEDULES = tuple(product((0.025, 0.05, 0.1, 0.2), (60, 120)))
"""Peak rates and epochs of the student without a teacher to choose from."""
IMAGES = ((30.0, 150), (45.0, 150), (60.0, 150), (45.0, 100), (55.0, 100), (60.0, 100))
"""Noise and number of training images to choose from."""


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """The user's images: as in the demo, or others to choose from."""

    noise: float = NOISE
    number: int = COUNTS[TRAIN]
    """Training images."""


TRIED_AT = ("train_student.lr=0.1", "train_student.epochs=60")
"""Rate and epochs with which noise and number of images were chosen."""
Row: TypeAlias = dict[str, object]


def choose() -> None:
    """Store the results that the demo's settings were chosen by."""
    store("images", picked_images())
    store("baseline", tuned_baseline())


def tuned_baseline() -> Iterator[Row]:
    """Students without a teacher on every schedule, under the demo's seeds.

    They are evaluated on the 150 images that are in no folder of their split, with noise.
    """
    alone = 'compare.variants={"no teacher" = ["train_student.distil=false"]}'
    for split in OTHERS:
        folder = WORK / f"spare-{split}"
        write_images(folder, split, Scanner(), test=OTHER_TEST)
        for rate, epochs in SCHEDULES:
            settings = (f"train_student.lr={rate}", f"train_student.epochs={epochs}")
            config = config_of(split, folder, alone, *settings)
            yield from students(config, split=split, lr=rate, epochs=epochs)


def picked_images() -> Iterator[Row]:
    """Students of all variants at every pair of `IMAGES`."""
    for noise, number in IMAGES:
        for split in OTHERS:
            folder = WORK / f"images-{split}-{noise:g}-{number}"
            write_images(folder, split, Scanner(noise=noise, number=number))
            config = config_of(split, folder, SEEDS, *TRIED_AT)
            yield from students(config, split=split, noise=noise, images=number)


def shown() -> Iterator[Row]:
    """The demo's students on every shown split."""
    for split in SHOWN:
        folder = WORK / f"students-{split}"
        write_images(folder, split, Scanner())
        yield from students(config_of(split, folder), split=split)


def students(config: Config, **known: object) -> Iterator[Row]:
    """Train every variant of ``config`` under every seed; a row for each student."""
    found = compare.execute(config)
    teacher = Caches(config=config, dataset=Dataset.open(config.data_folder)).test
    assert teacher is not None  # `compare` caches the test images too
    for variant, runs in found.runs.items():
        for run in runs:
            yield {
                **known,
                "variant": variant,
                "seed": run.result.seed,
                "test_accuracy": run.result.test_accuracy,
                "teacher_accuracy": teacher.summary.accuracy_training[0],
                "settings": settings_of(config, variant),
                "dataset": run.result.inputs.dataset,
                "device": run.result.cost.device,
                "torch": run.result.versions["torch"],
            }


def settings_of(config: Config, variant: str) -> str:
    """Hash of what a variant's students depend on, apart from images, teacher and seed."""
    settings = with_overrides(config, config.compare.variants[variant])
    tables = settings.model_dump(
        mode="json", include={"prepare", "views", "select", "train_student"}
    )
    tables["prepare"].pop("path")
    return short(identity("demo_settings", tables))


def config_of(split: int, folder: Path, *overrides: str) -> Config:
    """The demo's configuration for another split, with that split's teacher."""
    checkpoint, teacher = teacher_of(split)
    places = (
        f"workspace={folder}",
        f"prepare.path={folder / 'images'}",
        f"cache_teacher.checkpoint={checkpoint}",
        f"cache_teacher.mean={as_written(teacher.result.mean)}",
        f"cache_teacher.std={as_written(teacher.result.std)}",
    )
    return load_config(CONFIG, overrides=[*places, *overrides])


def as_written(numbers: Triple) -> list[float]:
    """A normalisation with the decimals that configs/demo.toml has."""
    return [round(number, 4) for number in numbers]


def teacher_of(split: int) -> tuple[Path, Run]:
    """The other team's checkpoint and the run that it is of, trained if there is none."""
    folder = WORK / f"split-{split}"
    files = demo_images.demo_files(seed=split)
    clean = {name: file for name, file in files.items() if name.startswith("other-team/")}
    demo_images.write_missing(folder, clean)
    own = folder / "other-team"
    places = (f"workspace={own}", f"prepare.path={own / 'images'}")
    config = load_config(TEACHER_CONFIG, overrides=places)
    prepare.execute(config)
    run = train_teacher.execute(config)
    return Path(shutil.copy(run.weights, folder / "teacher.safetensors")), run


def write_images(folder: Path, split: int, scanner: Scanner, *, test: str = TEST) -> None:
    """Write the user's images of a split; ``test`` is the part of it that they are tested on."""
    labels = load_digits().target
    scans = demo_images.scans(seed=split, noise=scanner.noise)
    counts = {**COUNTS, TRAIN: scanner.number}
    parts = demo_images.split(labels, seed=split, counts=counts)
    files: dict[str, bytes] = {}
    for name, rows in ((TRAIN, parts[TRAIN]), (TEST, parts[test])):
        files |= demo_images.class_folders(name, rows, images=scans, labels=labels)
    demo_images.write_missing(folder, files)


def store(name: str, rows: Iterator[Row]) -> None:
    """Keep rows as a CSV file, and print each."""
    KEPT.mkdir(parents=True, exist_ok=True)
    kept = []
    for row in rows:
        kept.append(row)
        print(*(f"{key}={value}" for key, value in row.items()), flush=True)
    pd.DataFrame(kept).to_csv(KEPT / f"{name}.csv", index=False)


def main() -> None:
    match sys.argv[1:]:
        case ["choose"]:
            choose()
        case ["run"]:
            store("students", shown())
        case ["render"]:
            PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
