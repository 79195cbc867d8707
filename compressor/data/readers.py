"""Files as columns: csv, tsv, jsonl, parquet, and txt with one row a line. Every error names the file and the line."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.data.settings import Column
from compressor.errors import InputError
from compressor.sources.encoding import lines_of, read_text
from compressor.sources.settings import RowFile, RowFormat

ENDINGS: dict[str, RowFormat] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".txt": "txt",
}


@dataclass(frozen=True)
class Columns:
    """The wanted columns of a file: `values[k][row]`, and where each row stands (line, or row for parquet, from 1)."""

    name: str
    values: list[list[Any]]
    places: list[int]
    word: str = "line"
    """What `places` counts."""

    def where(self, row: int) -> str:
        """File and line of a row, for an error."""
        return f"{self.name}: {self.word} {self.places[row]}"


@dataclass(frozen=True)
class Request:
    """What to read: the file, how it is written, and the columns wanted of it."""

    path: Path
    source: RowFile
    wanted: Sequence[Column]
    """Names, or places from 0 where the file has no header."""

    @property
    def name(self) -> str:
        """The path as the recipe gives it."""
        return self.source.path

    @property
    def has_header(self) -> bool:
        """Whether a csv or tsv file starts with the names of its columns: it does where nothing else says them."""
        return self.source.columns is None and not any(isinstance(column, int) for column in self.wanted)

    def text(self) -> str:
        """The whole file."""
        return read_text(self.path, self.source.encoding, name=self.name)


def read_columns(path: Path, source: RowFile, wanted: Sequence[Column]) -> Columns:
    """The wanted columns of a file, in the order wanted; blank lines are rows of None.

    Raises: InputError for an empty file, a column that is not there, or a line that cannot be read.
    """
    request = Request(path, source, wanted)
    columns = READERS[format_of(source, path)](request)
    if not columns.places:
        raise InputError(f"{request.name} is empty: it holds no rows")
    return columns


def format_of(source: RowFile, path: Path) -> RowFormat:
    """How the file is written: as said, else by the ending of its path."""
    if source.format is not None:
        return source.format
    ending = Path(source.path).suffix.lower() or path.suffix.lower()
    ending = ".parquet" if source.path.startswith("hf:") else ending
    if ending not in ENDINGS:
        raise InputError(
            f"{source.path}: the ending {ending!r} does not say how the rows are written; add format: with one of "
            + ", ".join(READERS)
        )
    return ENDINGS[ending]


def place_of(column: Column, names: Sequence[str], *, name: str) -> int:
    """Where a column stands among `names`; raises InputError that lists them."""
    if isinstance(column, int):
        if column < len(names):
            return column
        raise InputError(f"{name}: no column {column}; a row has {len(names)} columns, counted from 0")
    if names.count(column) == 1:
        return names.index(column)
    if column in names:
        raise InputError(f"{name}: column {column!r} stands {names.count(column)} times; rename one in the header")
    raise InputError(f"{name}: no column {column!r}; its columns are {', '.join(names)}")


def _rows_to_columns(request: Request, rows: Iterator[tuple[int, list[str]]]) -> Columns:
    """Columns of a table whose rows come as (line, fields); [] is a blank line."""
    names = request.source.columns
    if request.has_header:
        names = next((fields for _line, fields in rows if fields), None)
        if names is None:
            return Columns(request.name, [[] for _ in request.wanted], [])
    places: list[int] | None = None
    values: list[list[Any]] = [[] for _ in request.wanted]
    lines: list[int] = []
    width = len(names) if names is not None else 0
    for line, fields in rows:
        if fields and names is None:
            width, names = len(fields), [str(place) for place in range(len(fields))]
        if places is None and names is not None:
            places = [place_of(column, names, name=request.name) for column in request.wanted]
        if fields and len(fields) != width:
            raise InputError(
                f"{request.name}: line {line} has {len(fields)} fields where {width} are expected; look for an "
                "unquoted separator, or for a quote that is not closed"
            )
        lines.append(line)
        for kept, place in zip(values, places or [0] * len(values), strict=True):
            kept.append(fields[place] if fields else None)
    if request.has_header and places is None and names is not None:
        places = [place_of(column, names, name=request.name) for column in request.wanted]
    return Columns(request.name, values, lines)


def _read_tsv(request: Request) -> Columns:
    """Fields between tabs, nothing quoted."""
    lines = enumerate(lines_of(request.text()), start=1)
    return _rows_to_columns(request, ((line, text.split("\t") if text else []) for line, text in lines))


def _read_csv(request: Request) -> Columns:
    """Fields between commas, quoted ones may hold commas, quotes and line ends."""
    text = request.text()
    limit = csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            return _rows_to_columns(request, _csv_rows(reader))
        except csv.Error as problem:
            raise InputError(f"{request.name}: line {reader.line_num} is not csv: {problem}") from problem
    finally:
        csv.field_size_limit(limit)


def _csv_rows(reader: Any) -> Iterator[tuple[int, list[str]]]:
    first = 1
    for fields in reader:
        yield first, fields
        first = reader.line_num + 1


def _read_txt(request: Request) -> Columns:
    """One text a line, whatever its column is called."""
    if len(request.wanted) != 1:
        raise InputError(
            f"{request.name}: a txt file has one column, a text a line (wanted {', '.join(map(str, request.wanted))}); "
            "say its format: with tsv, csv or jsonl if it has more"
        )
    rows = list(lines_of(request.text()))
    return Columns(request.name, [rows], list(range(1, len(rows) + 1)))


def _read_jsonl(request: Request) -> Columns:
    """One JSON object a line; a key that a row lacks is None."""
    wanted = _names_only(request, "jsonl")
    values: list[list[Any]] = [[] for _ in wanted]
    lines: list[int] = []
    seen: dict[str, None] = {}
    for line, text in enumerate(lines_of(request.text()), start=1):
        row: Mapping[str, Any] = _json_row(text, where=f"{request.name}: line {line}") if text.strip() else {}
        seen.update(dict.fromkeys(row))
        lines.append(line)
        for column, key in zip(values, wanted, strict=True):
            column.append(row.get(key))
    if lines:
        for key in wanted:
            place_of(key, list(seen), name=request.name)
    return Columns(request.name, values, lines)


def _json_row(text: str, *, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise InputError(f"{where} is not JSON: {problem}; jsonl holds one object a line") from problem
    if not isinstance(row, dict):
        raise InputError(f"{where} is not a JSON object (got {text[:40]!r}); jsonl holds one object a line")
    return row


def _names_only(request: Request, form: str) -> list[str]:
    for column in request.wanted:
        if isinstance(column, int):
            raise InputError(f"{request.name}: a column of {form} is said by its name (got {column})")
    return [str(column) for column in request.wanted]


def _read_parquet(request: Request) -> Columns:
    import pyarrow
    from pyarrow import parquet

    try:
        names = parquet.read_schema(request.path).names
        places = [place_of(column, names, name=request.name) for column in request.wanted]
        table = parquet.read_table(request.path, columns=[names[place] for place in places])
    except (pyarrow.ArrowInvalid, OSError) as problem:
        raise InputError(f"{request.name} is not parquet: {problem}") from problem
    values = [table.column(names[place]).to_pylist() for place in places]
    return Columns(request.name, values, list(range(1, table.num_rows + 1)), word="row")


READERS: dict[RowFormat, Callable[[Request], Columns]] = {
    "csv": _read_csv,
    "tsv": _read_tsv,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "txt": _read_txt,
}


def head_names(path: Path, source: RowFile, wanted: Iterable[Column]) -> list[str] | None:
    """Names of a file's columns (not of txt, which has none); None where the first megabyte does not tell them.

    Columns without a name are called by their place. Reads at most a megabyte. Raises InputError as `read_columns`.
    """
    request = Request(path, source, list(wanted))
    form = format_of(source, path)
    if form == "parquet":
        import pyarrow
        from pyarrow import parquet

        try:
            return list(parquet.read_schema(path).names)
        except (pyarrow.ArrowInvalid, OSError) as problem:
            raise InputError(f"{request.name} is not parquet: {problem}") from problem
    text, whole = _head_text(request)
    lines = list(lines_of(text))
    if not any(line.strip() for line in lines):
        if not whole:
            return None
        raise InputError(f"{request.name} is empty: it holds no rows")
    if form == "jsonl":
        rows = [_json_row(line, where=f"{request.name}: line {n}") for n, line in enumerate(lines, 1) if line.strip()]
        names = list(dict.fromkeys(key for row in rows for key in row))
        return names if whole or set(request.wanted) <= set(names) else None
    if source.columns is not None:
        return source.columns
    first = next(line for line in lines if line)
    fields = first.split("\t") if form == "tsv" else next(csv.reader([first]), [])
    return fields if request.has_header else [str(place) for place in range(len(fields))]


def _head_text(request: Request) -> tuple[str, bool]:
    """The whole lines within the first megabyte, and whether that is all; undecodable bytes are replaced."""
    with request.path.open("rb") as file:
        raw = file.read(1 << 20)
        whole = not file.read(1)
    try:
        text = raw.decode(request.source.encoding or "utf-8", errors="replace").removeprefix("\ufeff")
    except LookupError as problem:
        raise InputError(f"{request.name}: encoding {request.source.encoding!r} is not known") from problem
    return (text, True) if whole else (text[: text.rfind("\n") + 1], False)
