"""Write the images of `make demo` as two teams would have them: python scripts/demo_images.py

The pictures are scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, each used once:

    work/demo/other-team/images/train/<class>/   800 clean images, of which a teacher is trained
    work/demo/other-team/images/test/<class>/    150 clean images, to see how good the teacher is
    work/demo/images/train/<class>/              100 images of your own scanner, which is worse
    work/demo/images/test/<class>/               747 more of them, on which students are compared

The worse scanner adds Gaussian noise to every pixel. Files that exist are left alone, so a second
run changes nothing.
"""

import argparse
import io
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

FOLDER = Path("work/demo")
SEED = 0
"""Seed of the demo's split and noise, chosen before any result on it was seen."""
NOISE = 55.0
"""Standard deviation of the worse scanner's noise; a white pixel is 255."""
OTHER_TRAIN, OTHER_TEST = "other-team/images/train", "other-team/images/test"
TRAIN, TEST = "images/train", "images/test"
COUNTS = {OTHER_TRAIN: 800, OTHER_TEST: 150, TRAIN: 100}
"""Folder -> number of its images; the other images are `TEST`."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the split and the noise")
    parser.add_argument("--noise", type=float, default=NOISE, help="0 to 255")
    options = parser.parse_args()
    files = demo_files(seed=options.seed, noise=options.noise)
    write_missing(options.folder, files)
    for name in (*COUNTS, TEST):
        count = sum(path.startswith(f"{name}/") for path in files)
        print(f"{options.folder / name}: {count} images")


def demo_files(*, seed: int = SEED, noise: float = NOISE) -> dict[str, bytes]:
    """Path below the demo's folder -> PNG file, for all digits.

    Args:
        seed: decides which team has a digit, and draws the noise.
        noise: standard deviation of the noise of `TRAIN` and `TEST`; a white pixel is 255.
    """
    labels = load_digits().target
    clean, noisy = scans(seed=seed, noise=0.0), scans(seed=seed, noise=noise)
    files = {}
    for name, rows in split(labels, seed=seed).items():
        images = noisy if name in (TRAIN, TEST) else clean
        files.update(class_folders(name, rows, images=images, labels=labels))
    return files


def scans(*, seed: int, noise: float) -> NDArray[np.uint8]:
    """All digits as a scanner sees them that adds this noise, (1797, 8, 8)."""
    clean = load_digits().images * (255.0 / 16.0)  # grey levels are 0 to 16
    noisy = clean + np.random.default_rng(seed).normal(0.0, noise, clean.shape)
    return noisy.round().clip(0, 255).astype(np.uint8)


def split(
    labels: NDArray[np.int64], *, seed: int, counts: Mapping[str, int] = COUNTS
) -> dict[str, NDArray[np.int64]]:
    """Deal the digits to the folders of ``counts``, and what is left to `TEST`.

    Every folder has every class, as often as all digits have it.
    """
    left = np.arange(len(labels))
    parts = {}
    for name, count in counts.items():
        parts[name], left = train_test_split(
            left, train_size=count, stratify=labels[left], random_state=seed
        )
    return {**parts, TEST: left}


def class_folders(
    name: str, rows: NDArray[np.int64], *, images: NDArray[np.uint8], labels: NDArray[np.int64]
) -> dict[str, bytes]:
    """Path -> PNG file of some digits, in one folder for each class."""
    return {f"{name}/{labels[row]}/{row:04d}.png": png(images[row]) for row in rows}


def png(image: NDArray[np.uint8]) -> bytes:
    """Encode one grey image, uncompressed, so that equal images are equal files everywhere."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=0)
    return file.getvalue()


def write_missing(folder: Path, files: dict[str, bytes]) -> None:
    """Write the files that do not exist; stop if the image folders hold any other file."""
    found = {str(path.relative_to(folder)): path for path in folder.glob("**/images/**/*.png")}
    other = [
        path
        for name, path in found.items()
        if name not in files or path.read_bytes() != files[name]
    ]
    if other:
        sys.exit(
            f"error: {other[0]} is not an image of this demo. Remove {folder} and run the same "
            "command again."
        )
    for name in files.keys() - found.keys():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[name])


if __name__ == "__main__":
    main()
