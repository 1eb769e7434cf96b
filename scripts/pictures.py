"""Draw the pictures of the documentation, and record what each of them shows.

`make pictures` runs the demo, then this module, which draws the charts of the study and photographs
the demo's report. It writes docs/images/pictures.json: the digests of configurations (with their
defaults), of stored results and of code behind each picture. A test compares these with today's.

python -m scripts.pictures [PART ...]  # parts: pipeline, study, report; by default all
"""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.study import figures, store
from scripts import pipeline_picture
from stages.config.file import load_config

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "images"
RECORD = FOLDER / "pictures.json"
DEMO_SOURCES = ("configs/demo*.toml", "scripts/demo_images.py")
"""Files beside its configuration that the demo is made from."""
REPORT_OF_DEMO = re.compile(
    r'^demo:.*?"\$\(BIN\)/heartcut" report (configs/\S+\.toml)', re.M | re.S
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Pictures that are drawn together."""

    pictures: str
    """Pattern of their names in `docs/images`."""
    inputs: Callable[[], dict[str, str]]
    """Digest of everything that they depend on, by name."""
    draw: Callable[[], None]


def main() -> None:
    wanted = sys.argv[1:] or list(PARTS)
    if unknown := set(wanted) - set(PARTS):
        sys.exit(f"unknown parts {sorted(unknown)} (expected some of {list(PARTS)})")
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    for name in wanted:
        PARTS[name].draw()
        record[name] = record_of(PARTS[name])
        RECORD.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{name}: {', '.join(record[name]['pictures'])}")


def record_of(part: Part) -> dict[str, object]:
    """Names of the pictures and digests of what they show."""
    names = sorted(path.name for path in FOLDER.glob(part.pictures))
    return {"pictures": names, "inputs": part.inputs()}


def inputs_of_pipeline() -> dict[str, str]:
    """The script that holds the drawing."""
    return dict([digest_of_file(Path(pipeline_picture.__file__))])


def inputs_of_study() -> dict[str, str]:
    """Stored results, and the points and seeds of each study in their order."""
    found = {}
    for name in store.studies():
        sweep = store.sweep_of(name)
        points = json.dumps([list(sweep.points.items()), list(sweep.seeds)])
        found[f"configs/studies/{name}.toml: points and seeds"] = digest(points.encode())
    paths = sorted(store.KEPT.glob("*.parquet"))
    return found | {relative(path): digest(path.read_bytes()) for path in paths}


def inputs_of_report() -> dict[str, str]:
    """Configurations of the demo with every default, and other files that it is made from."""
    paths = {demo_config(), *(path for pattern in DEMO_SOURCES for path in ROOT.glob(pattern))}
    return dict(map(digest_of_file, sorted(paths)))


def digest_of_file(path: Path) -> tuple[str, str]:
    """Name and digest: of a configuration with its defaults, and of other files as they are."""
    if path.suffix != ".toml":
        return relative(path), digest(path.read_bytes())
    settings = load_config(path).model_dump_json()
    return f"{relative(path)} with its defaults", digest(settings.encode())


def demo_config() -> Path:
    """The configuration that `make demo` reports on."""
    found = REPORT_OF_DEMO.search((ROOT / "Makefile").read_text(encoding="utf-8"))
    if found is None:
        raise LookupError("no `heartcut report configs/NAME.toml` in the Makefile's target demo")
    return ROOT / found[1]


def photograph_report() -> None:
    """Take the pictures of the report that `make demo` wrote."""
    report = ROOT / load_config(demo_config()).workspace / "report.html"
    if not report.exists():
        sys.exit(f"{report} does not exist. Run `make demo` first, or `make pictures` for both.")
    script = ROOT / "scripts" / "report_pictures.py"
    subprocess.run([sys.executable, script, report, FOLDER], check=True)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def faults() -> Iterator[str]:
    """Yield each picture that is not recorded, and each part whose inputs have changed."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    recorded = {name for part in record.values() for name in part["pictures"]}
    pictures = {path.name for path in FOLDER.iterdir()} - {RECORD.name}
    yield from (f"docs/images/{name} has no command" for name in sorted(pictures - recorded))
    yield from (f"docs/images/{name} is missing" for name in sorted(recorded - pictures))
    for name, part in PARTS.items():
        now, then = part.inputs(), record.get(name, {"inputs": {}})["inputs"]
        changed = sorted(key for key in now.keys() | then.keys() if now.get(key) != then.get(key))
        yield from (f"pictures of the {name} are older than {key}" for key in changed)


PARTS = {
    "pipeline": Part(
        pictures="pipeline.svg", inputs=inputs_of_pipeline, draw=pipeline_picture.draw
    ),
    "study": Part(pictures="study-*.svg", inputs=inputs_of_study, draw=figures.draw),
    "report": Part(pictures="report*.png", inputs=inputs_of_report, draw=photograph_report),
}


if __name__ == "__main__":
    main()
