"""Class map for a teacher with more classes than the data set, or with another order.

Every class of the data set gets its row of the teacher's head: by a given table, by name, or by
position if there are neither names nor a table. The other rows are left out, so the logits are of
the data set's classes.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from pipeline.errors import ArtefactMismatch, ArtefactNotFound, ConfigError
from pipeline.models.networks.classifier import Classifier
from pipeline.provenance import text_of


def read_class_names(path: Path) -> list[str]:
    """Read class names, one a line, in the order of the teacher's rows, without empty last lines.

    Raises:
        ArtefactNotFound: if there is no such file.
        ArtefactMismatch: if it is not a text of at least one name and without empty lines.
    """
    try:
        names = [line.strip() for line in text_of(path.read_bytes()).rstrip().splitlines()]
    except FileNotFoundError as error:
        raise ArtefactNotFound(
            f"{path} was not found (expected the teacher's class names, one a line). Check "
            "`cache_teacher.class_names`."
        ) from error
    except ValueError as error:
        raise ArtefactMismatch(
            f"{path} cannot be read as text: {error}. Save it as UTF-8, or check "
            "`cache_teacher.class_names`."
        ) from error
    except OSError as error:
        raise ArtefactMismatch(
            f"{path} cannot be read as text (expected the teacher's class names, one a line). "
            "Check `cache_teacher.class_names`."
        ) from error
    if len(names) < 2 or "" in names:
        found = f"line {names.index('') + 1} is empty" if "" in names else f"{len(names)} names"
        raise ArtefactMismatch(
            f"{path} is not a list of class names: {found} (expected one a line, in the order of "
            "the teacher's head). Correct it."
        )
    return names


def teacher_rows(
    class_names: Sequence[str],
    *,
    num_classes: int,
    teacher_names: Sequence[str] = (),
    class_map: Mapping[str, int | str] | None = None,
    order: Literal["", "text", "natural"] = "",
) -> list[int]:
    """Row of the teacher's head for each class of the data set.

    Names must match exactly, or else up to case, spaces and underscores.

    Args:
        class_names: class names of the data set, in its order.
        num_classes: rows of the teacher's head.
        teacher_names: names of these rows; empty: classes without an entry in ``class_map`` keep
            their position.
        class_map: class of the data set to a row, or to a teacher's name; it has precedence over
            names.
        order: order of the rows if there are neither names nor a table: of the data set ("text"),
            or with numbers by value ("natural"); empty: of the data set, unless it is doubtful.

    Returns:
        Rows, one for each class of the data set.

    Raises:
        ConfigError: if a class has no row, or several, or shares one, or a row does not exist.
    """
    if teacher_names and len(teacher_names) != num_classes:
        raise ConfigError(
            f"cache_teacher.class_names has {len(teacher_names):,} names (expected "
            f"{num_classes:,}, cache_teacher.num_classes). Correct one of them."
        )
    mapped = dict(class_map or {})
    _require_known(mapped, class_names)
    if not mapped and not teacher_names:
        return _by_place(class_names, num_classes, order)
    rows = [_row(name, mapped, teacher_names) for name in class_names]
    _require_found(class_names, rows)
    found = [row for row in rows if row is not None]
    _require_in_range(class_names, found, num_classes)
    _require_different(class_names, found)
    return found


def keep_classes(model: Classifier, rows: Sequence[int]) -> None:
    """Restrict the head to these rows, in their order."""
    head, kept = model.head, torch.tensor(rows)
    head.weight = nn.Parameter(head.weight.detach()[kept])
    head.bias = nn.Parameter(head.bias.detach()[kept])
    head.out_features = len(rows)


def natural_rows(class_names: Sequence[str]) -> list[int]:
    """Row of each class in a head whose classes are in natural order, as timm sorts folders."""
    order = sorted(range(len(class_names)), key=lambda number: _natural(class_names[number]))
    rows = [0] * len(order)
    for row, number in enumerate(order):
        rows[number] = row
    return rows


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sort key: numbers within a name by their value, everything else without regard to case."""
    parts = re.split(r"([0-9]+)", name.lower())
    return [
        (False, int(part), "") if number % 2 else (True, 0, part)
        for number, part in enumerate(parts)
        if part
    ]


def _by_place(class_names: Sequence[str], num_classes: int, order: str) -> list[int]:
    if num_classes != len(class_names):
        raise ConfigError(
            f"the teacher knows {num_classes:,} classes and the data set has "
            f"{len(class_names):,} (expected as many). Set `cache_teacher.class_names` or "
            "`cache_teacher.class_map`, which map the data set's classes to the teacher's."
        )
    rows = natural_rows(class_names)
    if order == "natural":
        return rows
    if not order and rows != sorted(rows) and all(map(_is_number, class_names)):
        first = ", ".join(class_names[:4])
        raise ConfigError(
            f"the class names are numbers in the order of text: {first}, ... (expected a setting "
            'for the order of the teacher\'s head). Set `cache_teacher.class_order = "natural"` '
            'for a head in the order of the numbers, `cache_teacher.class_order = "text"` for '
            "this order, as torchvision's ImageFolder gives, or `cache_teacher.class_names`."
        )
    return list(range(num_classes))


def _is_number(name: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]+(?:\.[0-9]+)?", name) is not None


def _row(name: str, mapped: Mapping[str, int | str], teacher_names: Sequence[str]) -> int | None:
    """Row of one class; None if there is none."""
    wanted = mapped.get(name, name)
    if isinstance(wanted, int):
        return wanted
    for spelt in (str, _plain):
        rows = [row for row, known in enumerate(teacher_names) if spelt(known) == spelt(wanted)]
        if len(rows) > 1:
            lines = " and ".join(str(row + 1) for row in rows[:3])
            raise ConfigError(
                f"class {name} could be several of cache_teacher.class_names: lines {lines} "
                f"(expected one). Give its row, line - 1, in `cache_teacher.class_map`."
            )
        if rows:
            return rows[0]
    if name in mapped:
        raise ConfigError(
            f"cache_teacher.class_map gives {name} the class {wanted!r}, which is not in "
            "cache_teacher.class_names (expected one of its lines). Correct it."
        )
    return None


def _plain(name: str) -> str:
    return "".join(name.casefold().split()).replace("_", "")


def _require_known(mapped: Mapping[str, int | str], class_names: Sequence[str]) -> None:
    unknown = [name for name in mapped if name not in class_names]
    if unknown:
        raise ConfigError(
            f"cache_teacher.class_map has {_some(unknown)}, not in the data set (expected classes "
            f"of the data set, such as {_some(class_names)}). Correct or remove them."
        )


def _require_found(class_names: Sequence[str], rows: Sequence[int | None]) -> None:
    holes = [name for name, row in zip(class_names, rows, strict=True) if row is None]
    if holes:
        raise ConfigError(
            f"the teacher has no class for {_some(holes)} (expected one for each of the "
            f"{len(class_names):,} of the data set). Add them to `cache_teacher.class_map`."
        )


def _require_in_range(class_names: Sequence[str], rows: Sequence[int], num_classes: int) -> None:
    outside = [
        f"{name} = {row}"
        for name, row in zip(class_names, rows, strict=True)
        if not 0 <= row < num_classes
    ]
    if outside:
        raise ConfigError(
            f"cache_teacher.class_map has {_some(outside)} (expected 0 to {num_classes - 1}, the "
            "rows of the teacher's head). Correct them."
        )


def _require_different(class_names: Sequence[str], rows: Sequence[int]) -> None:
    shared = [name for name, row in zip(class_names, rows, strict=True) if rows.count(row) > 1]
    if shared:
        raise ConfigError(
            f"{_some(shared)} are the same class of the teacher (expected another row for each). "
            "Correct them in `cache_teacher.class_map`."
        )


def _some(names: Sequence[str]) -> str:
    """At most three names, for a message."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
