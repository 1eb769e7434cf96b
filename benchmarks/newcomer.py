"""From a clone to a report of one's own images: what a newcomer types, and how long each takes.

    python benchmarks/newcomer.py [--images FOLDER]

Clones this repository, runs `make demo` there, and then the commands of docs/your-images.md in that
clone, with its configuration and a teacher that it trains. FOLDER holds train/<class>/<image> and
test/<class>/<image>; without it the digits of scikit-learn are written as PNG files. Set-up is
everything that this machine lacks.
"""

import argparse
import json
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from _common import machine
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

ROOT = Path(__file__).parents[1]
STAGES = ("prepare", "train-teacher", "cache-teacher", "select", "compare", "report")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=Path)
    images: Path | None = parser.parse_args().images
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch) / "heartcut"
        done = [timed("git clone", ["git", "clone", "--quiet", str(ROOT), str(clone)], ROOT)]
        done.append(timed("make demo", ["make", "demo"], clone))
        if images is None:
            write_digits(clone / "images")
        else:
            (clone / "images").symlink_to(images.resolve())
        (clone / "my.toml").write_text(configuration(), encoding="utf-8")
        for stage in STAGES:
            command = [".venv/bin/heartcut", stage, "my.toml"]
            done.append(timed(f"heartcut {stage} my.toml", command, clone))
        kept = Path.cwd() / "newcomer-report.html"
        shutil.copy(clone / "work" / "flowers" / "report.html", kept)
    print(f"\n{machine()}, n = 1\n\n| step | seconds |\n|---|---|")
    for name, seconds in done:
        print(f"| `{name}` | {seconds:.0f} |")
    print(f"| all | {sum(seconds for _, seconds in done):.0f} |")
    print(json.dumps({"machine": machine(), "seconds": dict(done)}))


def timed(name: str, command: list[str], folder: Path) -> tuple[str, float]:
    started = time.monotonic()
    subprocess.run(command, cwd=folder, check=True)
    return name, time.monotonic() - started


def configuration() -> str:
    """The configuration of the page, with the teacher that it trains if there is no checkpoint."""
    page = (ROOT / "docs" / "your-images.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    whole = next(block for block in blocks if block.startswith("workspace = "))
    teacher = next(block for block in blocks if block.startswith("[train_teacher]"))
    changed, num_changed = re.subn(
        r"\[cache_teacher\]\n.*?\n\n", f"{teacher}\n", whole, flags=re.DOTALL
    )
    assert num_changed == 1, "docs/your-images.md has no [cache_teacher] in its configuration"
    return changed


def write_digits(folder: Path) -> None:
    """The digits as PNG files of 8 x 8 pixels in torchvision's layout."""
    digits = load_digits()
    rows = np.arange(len(digits.target))
    train, _ = train_test_split(rows, train_size=0.7, random_state=0, stratify=digits.target)
    is_trained_on = np.isin(rows, train)
    for row in rows:
        split = "train" if is_trained_on[row] else "test"
        path = folder / split / str(digits.target[row]) / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[row] * 15.9375).astype(np.uint8)).convert("RGB").save(path)


if __name__ == "__main__":
    main()
