"""Parquet tables with a record: the common part of the selection table and the score file.

    one file, one row per sample in the order of `sample_index`, the columns that its owner names
    file metadata, key `heartcut`: the owner's record as JSON
    a seal (`sealed_parquet`), until another program writes the table again

`selection` and `scores` own columns and records; this module reads, writes and checks them.
"""

import json
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.artefacts import sealed_parquet
from pipeline.artefacts.records import AnyRecord, parse_record, printable
from pipeline.errors import ArtefactMismatch
from pipeline.provenance import Json, array_sha256, identity, short

MADE_BY: Final = "heartcut select"
RECORD: Final = "heartcut"
"""Key of the record in the file's metadata."""
NULLABLE: Final = frozenset({"label_issue"})
"""Columns that may have missing values; an unknown float is NaN."""
REMEDY: Final = f"Run `{MADE_BY}` again."
_PANDAS: Final = "PANDAS_ATTRS"
"""Metadata key in which pandas stores `DataFrame.attrs`."""

Kinds: TypeAlias = dict[str, pa.DataType]
Columns: TypeAlias = Mapping[str, NDArray[np.generic]]
"""Arrays of one length by name; masked where a value is missing."""


def as_table(columns: Columns, kinds: Kinds) -> pa.Table:
    """The columns of ``kinds``, in that order and of these types."""
    arrays = [pa.array(columns[name], type=kind) for name, kind in kinds.items()]
    return pa.Table.from_arrays(arrays, names=list(kinds))


def write(path: Path, table: pa.Table, *, metadata: Mapping[str, str]) -> None:
    """Write a table with a seal and publish it under ``path`` when it is complete."""
    sealed_parquet.write(path, table.replace_schema_metadata(dict(metadata)))


def for_pandas(record: str) -> dict[str, str]:
    """Metadata that makes pandas carry ``record`` from `read_parquet` to `to_parquet`."""
    return {_PANDAS: json.dumps({RECORD: record})}


def read(path: Path) -> pa.Table:
    """Read a table with the metadata of its file, and check every byte.

    Not `read_table`, which drops the file's metadata if the writer was Polars.

    Raises:
        ArtefactNotFound: if there is none.
        ArtefactMismatch: if it is not a parquet file, or is damaged.
    """
    with _opened(path, whole=True) as file:
        table = file.read()
        _ = table.column_names  # decodes the names, so damaged ones raise here
    return table


def read_head(path: Path) -> pa.Table:
    """The columns of a table without their rows, and the metadata of its file.

    Raises:
        ArtefactNotFound: if there is none.
        ArtefactMismatch: if it is not a parquet file, or its metadata are damaged.
    """
    with _opened(path, whole=False) as file:
        return file.schema_arrow.empty_table()


def _opened(path: Path, *, whole: bool) -> AbstractContextManager[pq.ParquetFile]:
    remedy = f"Remove it and run `{MADE_BY}` again."
    return sealed_parquet.opened(path, whole=whole, made_by=MADE_BY, remedy=remedy)


def metadata_text(stored: pa.Table, key: str) -> str | None:
    """One entry of the file's metadata; None if there is none."""
    value = (stored.schema.metadata or {}).get(key.encode())
    return None if value is None else value.decode(errors="replace")


def carried_by_pandas(stored: pa.Table) -> str | None:
    """The record that pandas kept in its own metadata; None if it did not."""
    try:
        attributes: Json = json.loads(metadata_text(stored, _PANDAS) or "null")
    except (ValueError, RecursionError):
        return None
    found = attributes.get(RECORD) if isinstance(attributes, dict) else None
    return found if isinstance(found, str) else None


def parse(model: type[AnyRecord], text: str, *, path: Path, what: str) -> AnyRecord:
    """Parse the record in ``text``; ``what`` names the kind of file for messages.

    Raises:
        ArtefactMismatch: if it is damaged, or of another kind or version.
    """
    try:
        value: Json = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtefactMismatch(f"{path} has damaged metadata: {error}. {REMEDY}") from error
    wanted = model.model_fields["format"].default
    found = value.get("format", wanted) if isinstance(value, dict) else wanted
    if found != wanted:
        raise ArtefactMismatch(
            f"{path} is not a {what}: its metadata says {printable(str(found))} "
            f"(expected {wanted}). Pass the {what}."
        )
    return parse_record(model, value, path=path, remedy=REMEDY)


def require_own_id(path: Path, *, found: str, expected: str) -> None:
    """Reject a record whose settings were changed."""
    if found != expected:
        raise ArtefactMismatch(
            f"{path} has an id that does not match its settings: {short(found)} "
            f"(expected {short(expected)}). {REMEDY}"
        )


def require_columns(path: Path, stored: pa.Table, kinds: Kinds, *, joined: Collection[str]) -> None:
    """Reject a table with a missing column, a wrong type, or missing values in ``joined`` ones."""
    missing = [name for name in kinds if name not in stored.column_names]
    if missing:
        raise ArtefactMismatch(
            f"{path} lacks the columns {', '.join(missing)}. "
            f"Restore them, or run `{MADE_BY}` again."
        )
    for name, wanted in kinds.items():
        column = stored.column(name)
        num_missing = column.null_count if name in joined else 0
        is_empty = name not in joined and _is_empty(column)
        if num_missing or not (is_empty or _serves_as(column.type, wanted)):
            rest = "none missing" if name in joined else "of which any may be missing"
            raise ArtefactMismatch(
                f"{path} has a `{name}` column of {column.type} with {column.null_count} missing "
                f"values (expected {wanted}, {rest}). Fix the column, copy your `selected` into "
                f"the original table, or run `{MADE_BY}` again."
            )


def with_empty_columns(stored: pa.Table, kinds: Kinds) -> pa.Table:
    """Give columns without a value their type, which they lose on the way through CSV."""
    for name, wanted in kinds.items():
        place = stored.schema.get_field_index(name)
        column = stored.column(place)
        if _is_empty(column) and not _serves_as(column.type, wanted):
            stored = stored.set_column(place, name, pa.nulls(len(column), wanted))
    return stored


def _is_empty(column: pa.ChunkedArray) -> bool:
    return bool(column.null_count == len(column))


def as_frame(path: Path, stored: pa.Table) -> pd.DataFrame:
    """Convert the rows for pandas; missing values of a bool column stay missing.

    Raises:
        ArtefactMismatch: if there is not one row per sample, in the order of sample_index.
    """
    # Without metadata, because pandas would trust its own entry, which a user may have changed.
    frame: pd.DataFrame = stored.replace_schema_metadata(None).to_pandas()
    differing = np.flatnonzero(frame["sample_index"].to_numpy() != np.arange(len(frame)))
    if len(differing):
        row = differing[0]
        raise ArtefactMismatch(
            f"{path} does not have one row per sample in the order of sample_index: row {row} has "
            f"sample {frame['sample_index'].iloc[row]}. Restore the rows and sort them by "
            f"sample_index, or run `{MADE_BY}` again."
        )
    return frame.astype(dict.fromkeys(NULLABLE & set(frame.columns), "boolean"))


def flags(column: pd.Series) -> NDArray[np.bool_]:
    """A bool column as an array, (N,); missing values are False."""
    return column.eq(True).fillna(False).to_numpy(dtype=bool)


def digest(table: pa.Table, record: str) -> str:
    """Hash of every value of every column and of the record's text."""
    columns: list[Json] = [
        [field.name, str(field.type), array_sha256(_values(table.column(field.name)))]
        for field in table.schema
    ]
    return identity("table", [record, columns])


def _values(column: pa.ChunkedArray) -> NDArray[np.generic]:
    """Values of a column, with -1 for a missing bool."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8()).fill_null(-1)
    values: NDArray[np.generic] = column.to_numpy()
    return values


def _serves_as(found: pa.DataType, wanted: pa.DataType) -> bool:
    """True if other parquet writers may store ``wanted`` as ``found``, such as a wider number."""
    kinds = pa.types
    if kinds.is_integer(wanted):
        return bool(kinds.is_integer(found))
    if kinds.is_floating(wanted):
        return bool(kinds.is_floating(found))
    if kinds.is_string(wanted):
        tests = (kinds.is_string, kinds.is_large_string, kinds.is_string_view)
        return any(test(found) for test in tests)
    return bool(found == wanted)
