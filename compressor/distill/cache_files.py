"""The files of a teacher cache: written row by row, taken up again after a kill, checked before they are believed."""

# N rows of both pools, T tokens of all rows kept, V views, C classes, D hidden

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from compressor.distill.state_codes import Channels, decode_int8, encode_int8
from compressor.errors import StageError

NOTE, LOGITS, OFFSETS = "cache.json", "logits.npy", "offsets.npy"
SCHEMA = 2


@dataclass(frozen=True)
class Contents:
    """What a cache holds; another one is of no use."""

    key: str
    """Digest of teachers, rows and views."""
    asked: str
    """Setting of the precision."""
    precision: str
    """What that came to: fp32 or bf16."""
    states: str
    """How hidden states are written: fp16 or int8."""
    layers: tuple[int, ...]
    """Teacher layers kept."""
    rows: int
    views: int
    classes: int
    hidden: int
    schema: int = SCHEMA


class CacheFiles:
    """A folder with logits of N rows and, one after the other, the hidden states of the rows that were computed."""

    def __init__(
        self, folder: Path, contents: Contents, channels: Mapping[int, Channels], *, tokens: int, complete: bool
    ) -> None:
        self.folder, self.contents, self.channels = folder, contents, channels
        self.tokens = tokens
        """Tokens of all rows that were committed."""
        self.complete = complete
        """Whether the last pass came to its end, so that the digests are written down."""
        self.logits = open_memmap(folder / LOGITS, mode="r+")
        self.offsets: NDArray[np.int64] = np.load(folder / OFFSETS)
        self.offsets[self.offsets >= tokens] = -1  # rows of a pass that was killed before it was written down
        self._states: dict[int, NDArray[Any]] = {}
        self._scales: dict[int, NDArray[np.float32]] = {}

    @classmethod
    def made(cls, folder: Path, contents: Contents, channels: Mapping[int, Channels]) -> CacheFiles:
        """A new, empty cache in place of whatever the folder held."""
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if path.is_file():
                path.unlink()
        shape = (contents.views, contents.rows, contents.classes)
        logits = open_memmap(folder / LOGITS, mode="w+", dtype=np.float32, shape=shape)
        logits[:] = np.nan
        logits.flush()
        np.save(folder / OFFSETS, np.full(shape[:2], -1, dtype=np.int64))
        for layer, found in channels.items():
            np.save(folder / f"channels-{layer}.npy", np.stack([found.offset, found.scale]))
        _write_note(folder, contents, tokens=0, digests=None)
        return cls(folder, contents, channels, tokens=0, complete=False)

    @classmethod
    def found(cls, folder: Path) -> CacheFiles | None:
        """The cache in the folder, finished or not; None where there is none.

        Raises: ValueError naming the file where one is not what the note says.
        """
        note = _read_note(folder)
        if note is None:
            return None
        contents = Contents(**{**note["contents"], "layers": tuple(note["contents"]["layers"])})
        for name, digest in (note["digests"] or {}).items():
            if not (folder / name).is_file() or _digest(folder / name) != digest:
                raise ValueError(name)
        channels = {}
        try:
            if contents.states == "int8":
                for layer in contents.layers:
                    offset_D, scale_D = np.load(folder / f"channels-{layer}.npy")
                    channels[layer] = Channels(offset_D, scale_D)
            files = cls(folder, contents, channels, tokens=note["tokens"], complete=note["digests"] is not None)
        except (OSError, EOFError) as problem:
            raise ValueError(str(problem)) from problem
        files._check_whole()
        return files

    def done(self, view: int) -> NDArray[np.bool_]:
        """Which rows have answers, shape (N,)."""
        found: NDArray[np.bool_] = self.offsets[view] >= 0
        return found

    def writer(self) -> CacheWriter:
        """Adds rows; whatever an unfinished pass left behind the last commit is cut off."""
        return CacheWriter(self)

    def lookup(self, view: int, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits of rows, shape (B, C). Raises: StageError for a row that was not computed."""
        if (self.offsets[view, places] < 0).any():
            row = int(places[self.offsets[view, places] < 0][0])
            raise StageError(
                f"the teacher's answer to row {row} was not computed before training; report this as a bug"
            )
        found: NDArray[np.float32] = self.logits[view, places]
        return found

    def states(self, layer: int, view: int, places: NDArray[np.int64], length: int, device: torch.device) -> Tensor:
        """Hidden states of rows, shape (B, length, D) fp32; after a row's own tokens stand those of others."""
        first_B = self.offsets[view, places]
        token_BL = np.minimum(first_B[:, None] + np.arange(length), self.tokens - 1)
        codes = torch.from_numpy(np.take(self._mapped(layer), token_BL, axis=0)).to(device)
        if self.contents.states == "fp16":
            return codes.float()
        scales = torch.from_numpy(np.take(self._scales[layer], token_BL, axis=0)).to(device)
        return decode_int8(codes, scales, self.channels[layer])

    def _mapped(self, layer: int) -> NDArray[Any]:
        if layer not in self._states:
            int8 = self.contents.states == "int8"
            shape = (self.tokens, self.contents.hidden)
            self._states[layer] = np.memmap(
                self.folder / states_file(layer), np.int8 if int8 else np.float16, "r", 0, shape
            )
            if int8:
                self._scales[layer] = np.memmap(self.folder / scales_file(layer), np.float32, "r", 0, (self.tokens,))
        return self._states[layer]

    def _check_whole(self) -> None:
        """ValueError where a file is shorter than what was committed, or a committed answer is not there."""
        for name, size in _row_bytes(self.contents).items():
            if self.tokens and (
                not (self.folder / name).is_file() or os.path.getsize(self.folder / name) < size * self.tokens
            ):
                raise ValueError(name)
        if self.logits.shape != (self.contents.views, self.contents.rows, self.contents.classes):
            raise ValueError(LOGITS)


class CacheWriter:
    """Appends the answers of a pass; nothing counts before `commit`."""

    def __init__(self, files: CacheFiles) -> None:
        self.files = files
        self.tokens = files.tokens
        files._states.clear()
        files._scales.clear()
        self.open: dict[str, BinaryIO] = {}
        for name, size in _row_bytes(files.contents).items():
            handle = (files.folder / name).open("ab")
            handle.truncate(size * self.tokens)
            handle.seek(0, os.SEEK_END)
            self.open[name] = handle
        files.complete = False
        _write_note(files.folder, files.contents, tokens=self.tokens, digests=None)

    def add(
        self,
        view: int,
        places: NDArray[np.int64],
        logits: Tensor,
        lengths: NDArray[np.int64],
        states: Mapping[int, Tensor],
    ) -> None:
        """The answers to some rows.

        Args:
            places: (B,) among all rows.
            logits: (B, C).
            lengths: (B,) tokens of each row.
            states: layer to (T, D), the rows' tokens one after the other.
        """
        for layer, states_TD in states.items():
            if self.files.contents.states == "int8":
                codes, scales = encode_int8(states_TD, self.files.channels[layer])
                self.open[scales_file(layer)].write(scales.tobytes())
                self.open[states_file(layer)].write(codes.tobytes())
            else:
                self.open[states_file(layer)].write(_halved(states_TD, layer).tobytes())
        self.files.logits[view, places] = logits.cpu().numpy()
        ends = self.tokens + np.cumsum(lengths)
        self.files.offsets[view, places] = ends - lengths
        self.tokens = int(ends[-1])

    def commit(self) -> None:
        """Make everything added so far last, also through a kill."""
        for handle in self.open.values():
            handle.flush()
            os.fsync(handle.fileno())
        self.files.logits.flush()
        partial = self.files.folder / f"{OFFSETS}.partial"
        with partial.open("wb") as handle:
            np.save(handle, self.files.offsets)
            os.fsync(handle.fileno())
        partial.replace(self.files.folder / OFFSETS)
        self.files.tokens = self.tokens
        _write_note(self.files.folder, self.files.contents, tokens=self.tokens, digests=None)

    def close(self) -> None:
        """Commit and let go of the files."""
        self.commit()
        for handle in self.open.values():
            handle.close()

    def finish(self) -> None:
        """Write the digests of all files down, after `close`: the pass is complete."""
        folder, contents = self.files.folder, self.files.contents
        extra = [f"channels-{layer}.npy" for layer in contents.layers if contents.states == "int8"]
        names = [LOGITS, OFFSETS, *_row_bytes(contents), *extra]
        digests = {name: _digest(folder / name) for name in names}
        _write_note(folder, contents, tokens=self.tokens, digests=digests)
        self.files.complete = True


def states_file(layer: int) -> str:
    """Name of the file with a layer's states."""
    return f"hidden-{layer}.bin"


def scales_file(layer: int) -> str:
    """Name of the file with the scale of each token of a layer, for int8."""
    return f"scales-{layer}.f32"


def _row_bytes(contents: Contents) -> dict[str, int]:
    """Files that grow with every token, and by how many bytes."""
    int8 = contents.states == "int8"
    sizes = {states_file(layer): contents.hidden * (1 if int8 else 2) for layer in contents.layers}
    return sizes | ({scales_file(layer): 4 for layer in contents.layers} if int8 else {})


def _halved(states_TD: Tensor, layer: int) -> NDArray[np.float16]:
    """The states in fp16; StageError where one is too large for it."""
    half_TD = states_TD.to(torch.float16)
    if not bool(half_TD.isfinite().all()):
        raise StageError(f"states of teacher layer {layer} exceed what fp16 holds (65504); set cache.states: int8")
    found: NDArray[np.float16] = half_TD.cpu().numpy()
    return found


def _write_note(folder: Path, contents: Contents, *, tokens: int, digests: Mapping[str, str] | None) -> None:
    partial = folder / f"{NOTE}.partial"
    with partial.open("w", encoding="utf-8") as handle:
        json.dump({"contents": asdict(contents), "tokens": tokens, "digests": digests}, handle)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(folder / NOTE)


def _read_note(folder: Path) -> dict[str, Any] | None:
    """The note of a cache that this version can read; None without one."""
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        fits = note["contents"]["schema"] == SCHEMA and {"tokens", "digests"} <= note.keys()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return note if fits else None


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
