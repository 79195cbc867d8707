"""SHA-256 of files and folders, with a cache for plans that must not read gigabytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from compressor.sources.cache import cache_folder, write_atomically

CACHED_FROM_BYTES = 1 << 20
"""Files from this size on have their digest cached; smaller ones are hashed faster than looked up."""


def file_digest(path: Path, *, trust_cache: bool = False) -> str:
    """SHA-256 (hex) of a file's bytes.

    Args:
        trust_cache: take a digest cached for the same path, size, modification time and inode, as `--plan` does; False
            hashes the file and refreshes the cache.
    """
    state = path.stat()
    if state.st_size < CACHED_FROM_BYTES:
        return _hashed(path)
    whole = path.resolve()
    seen = [str(whole), state.st_size, state.st_mtime_ns, state.st_ino]
    note = cache_folder() / "digests" / f"{hashlib.sha256(str(whole).encode()).hexdigest()}.json"
    if trust_cache:
        cached = _read_note(note)
        if cached is not None and cached[:4] == seen:
            return str(cached[4])
    digest = _hashed(path)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
        write_atomically(note, json.dumps([*seen, digest]).encode())
    return digest


def folder_digest(folder: Path, patterns: Sequence[str], *, trust_cache: bool = False) -> str:
    """SHA-256 (hex) over the sorted names and digests of the files below `folder` that match one of the patterns.

    Patterns are those of fnmatch on the path below the folder, such as `*.safetensors`.
    """
    total = hashlib.sha256()
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    for name in names:
        if any(fnmatch(name, pattern) for pattern in patterns):
            total.update(f"{name}\0{file_digest(folder / name, trust_cache=trust_cache)}\n".encode())
    return total.hexdigest()


def _hashed(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_note(note: Path) -> list[object] | None:
    try:
        value = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, list) and len(value) == 5 else None
