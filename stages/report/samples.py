"""The samples that a report shows: chosen from the selection table, as small pictures."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.records import printable
from pipeline.artefacts.selection import SelectionTable
from pipeline.artefacts.soft_labels import SoftLabels
from pipeline.artefacts.tables import flags
from pipeline.data.loaders import CLEAN, BatchLoader
from pipeline.data.view_specs import views_from_json
from pipeline.methods.sparse_labels import unpack
from pipeline.provenance import Json
from stages.report.teacher import TeacherFacts

_BARS = 3
"""Classes of a distribution that are shown, in addition to the label."""
SCORE = "dloss_undistill"
SORTS: list[Json] = [
    ["influence", "influence"],
    ["p_target", "teacher's probability of the label"],
    ["p_max", "teacher's confidence"],
    ["beta", "beta"],
    ["index", "sample number"],
]
_LARGEST_SIDE = 96
_LOSSLESS_SIDE = 40
"""In smaller images every pixel matters, and PNG costs little."""
_QUALITY = 80


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A choice of samples: its order, and how many there are in all."""

    name: str
    meaning: str
    """After the number of all of them."""
    order: NDArray[np.int64]
    """Sample indices, the most relevant first."""
    total: int


def presets(table: SelectionTable, *, most: int) -> list[Preset]:
    """The samples worth a look; of each preset at most its share of ``most`` samples."""
    frame = table.frame[~flags(table.frame["held_out"]) & (table.frame["teacher_class"] >= 0)]
    found = list(_questions(frame))
    shares = [len(part) for part in np.array_split(np.arange(most), max(len(found), 1))]
    return [
        Preset(name=name, meaning=meaning, order=rows.index.to_numpy()[:share], total=len(rows))
        for (name, meaning, rows), share in zip(found, shares, strict=False)
    ]


def _questions(frame: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    wrong = frame[~flags(frame["teacher_correct"])]
    wrong = wrong.sort_values("p_max", ascending=False, kind="stable")
    yield "Teacher wrong", "training samples that the teacher gets wrong", wrong
    scored = frame[frame[SCORE].notna()].sort_values(SCORE, ascending=False, kind="stable")
    if len(scored):
        yield (
            "Most helpful",
            "samples whose soft label is estimated to help",
            scored[scored[SCORE] > 0],
        )
        harmful = scored[::-1]
        yield (
            "Most harmful",
            "samples whose soft label is estimated to harm",
            harmful[harmful[SCORE] < 0],
        )
    issues = frame[flags(frame["label_issue"])]
    if len(issues):
        issues = issues.sort_values("p_refit", kind="stable")
        yield "Likely label errors", "samples whose label is probably wrong", issues
    dropped = frame[(frame["rank"] >= 0) & ~flags(frame["selected"])]
    if len(dropped):
        dropped = dropped.sort_values("rank", ascending=False, kind="stable")
        yield "Not distilled", "samples that are not distilled", dropped


def explorer(
    table: SelectionTable,
    soft: SoftLabels | None,
    teacher: TeacherFacts | None,
    dataset: Dataset,
    *,
    most: int,
) -> dict[str, Json] | None:
    """Data for the page's script, with at most ``most`` samples; None: there is none to show."""
    questions = presets(table, most=most)
    rows = np.unique(np.concatenate([preset.order for preset in questions]))
    if not len(rows):
        return None
    positions = {int(row): position for position, row in enumerate(rows)}
    pictures = _pictures(dataset, soft, rows)
    probs = None if teacher is None else teacher.probs(dataset, rows)
    revised = None if soft is None else _revised(soft, rows)
    right = flags(table.frame["teacher_correct"])
    samples: list[Json] = [
        _sample(
            table.frame.iloc[row],
            right=bool(right[row]),
            picture=pictures[position],
            teacher=None if probs is None else probs[position],
            revised=None if revised is None else revised[position],
        )
        for position, row in enumerate(rows.tolist())
    ]
    return {
        "classes": [printable(name) for name in dataset.record.class_names],
        "samples": samples,
        "sorts": SORTS,
        "presets": [
            {
                "name": preset.name,
                "meaning": preset.meaning,
                "total": preset.total,
                "members": [positions[int(row)] for row in preset.order],
            }
            for preset in questions
        ],
    }


def _pictures(dataset: Dataset, soft: SoftLabels | None, rows: NDArray[np.int64]) -> list[str]:
    """The clean view of every row."""
    spec = CLEAN if soft is None else views_from_json(soft.record.identity.view_spec).clean
    loader = BatchLoader(dataset.train, batch_size=len(rows), view_spec=spec, rows=rows, workers=1)
    return [
        data_uri(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
        for batch in loader.view(0)
        for image in batch.images
    ]


def _revised(soft: SoftLabels, rows: NDArray[np.int64]) -> torch.Tensor:
    """Labels that students learn, the mean over the views, (n, C)."""
    total = torch.zeros(len(rows), soft.num_classes)
    views = soft.views()
    for view in views:
        part = torch.from_numpy(np.ascontiguousarray(view[rows]))
        total += unpack(part, soft.num_classes) if soft.top_k else part.float()
    return total / len(views)


def _sample(
    row: pd.Series,
    *,
    right: bool,
    picture: str,
    teacher: torch.Tensor | None,
    revised: torch.Tensor | None,
) -> dict[str, Json]:
    label = int(row["label"])
    if teacher is None:
        by_class = {int(row["teacher_class"]): row["p_max"], label: row["p_target"]}
        shares: list[Json] = [[klass, float(p)] for klass, p in by_class.items() if not np.isnan(p)]
    else:
        shares = _top(teacher, label)
    return {
        "index": int(row["sample_index"]),
        "key": str(row["sample_key"])[:12],
        "image": picture,
        "label": label,
        "right": right,
        "selected": bool(row["selected"]) if row["rank"] >= 0 else None,
        "issue": None if pd.isna(row["label_issue"]) else bool(row["label_issue"]),
        "teacher": shares,
        "revised": [] if revised is None else _top(revised, label),
        "beta": _known(row["beta"]),
        "p_target": _known(row["p_target"]),
        "p_max": _known(row["p_max"]),
        "influence": _known(row[SCORE]),
        "error": _known(row[f"{SCORE}_se"]),
        "reason": printable(str(row["reason"])),
    }


def _top(probs: torch.Tensor, label: int) -> list[Json]:
    """The likeliest classes, and the label where it is not among them."""
    classes = probs.topk(min(_BARS, len(probs))).indices.tolist()
    classes += [] if label in classes else [label]
    return [[klass, float(probs[klass])] for klass in classes]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """An image, (H, W, 3) uint8, as a `data:` address: PNG if it is small, else a small JPEG."""
    image = Image.fromarray(pixels)
    out = io.BytesIO()
    if max(image.size) <= _LOSSLESS_SIDE:
        kind = "png"
        image.save(out, format="PNG", optimize=True)
    else:
        kind = "jpeg"
        image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
        image.save(out, format="JPEG", quality=_QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
