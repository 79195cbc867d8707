"""Text files as strings: UTF-8 unless told otherwise, and a helpful word where the bytes say something else."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from compressor.errors import InputError

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_GB2312_FLOOR = 0xA1
"""Both bytes of a common Chinese character are at or above this; accented Latin-1 letters have ASCII neighbours."""


def read_text(path: Path, encoding: str | None, *, name: str | None = None) -> str:
    """The file's text without a byte order mark; `name` stands for the path in errors.

    Args:
        encoding: any that Python knows; None means UTF-8.
    Raises: InputError naming file, line and byte, and the encoding that the bytes do read as, if one does.
    """
    name = name or str(path)
    try:
        raw = path.read_bytes()
    except OSError as problem:
        raise InputError(f"{name} cannot be read: {problem.strerror}") from problem
    return decode(raw, encoding, name=name)


def decode(raw: bytes, encoding: str | None, *, name: str) -> str:
    """The text of these bytes, as `read_text` gives it."""
    try:
        text = raw.decode(encoding or "utf-8")
    except LookupError as problem:
        raise InputError(f"{name}: encoding {encoding!r} is not known; write one such as utf-8 or gb18030") from problem
    except UnicodeDecodeError as problem:
        line = raw.count(b"\n", 0, problem.start) + 1
        said = encoding or "UTF-8"
        raise InputError(
            f"{name}: line {line}, byte {problem.start} (0x{raw[problem.start]:02x}) is not {said}; {_advice(raw)}"
        ) from problem
    if encoding is None and "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{name}: line {line} holds a NUL byte, so it is no UTF-8 text; {_advice(raw)}")
    return text.removeprefix("\ufeff")


def lines_of(text: str) -> Iterator[str]:
    r"""The lines of a text, ended by LF or CRLF; other separators such as U+2028 stay inside their line.

    >>> list(lines_of("one\r\ntwo\u2028more\n"))
    ['one', 'two\u2028more']
    """
    start = 0
    while start < len(text):
        stop = text.find("\n", start)
        stop = len(text) if stop < 0 else stop
        yield text[start : stop - 1] if stop > start and text[stop - 1] == "\r" else text[start:stop]
        start = stop + 1


def likely_encoding(raw: bytes) -> str | None:
    """The encoding these bytes read as, where that can be told: utf-16, a marked utf-32, or gb18030; else None."""
    for mark, encoding in _BOMS:
        if raw.startswith(mark):
            return encoding if _reads(raw, encoding) else None
    if b"\0" in raw:
        head = raw[: 1 << 20]
        encoding = "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be"
        return encoding if _reads(raw, encoding) else None
    return "gb18030" if _reads(raw, "gb18030") and _looks_chinese(raw) else None


def _advice(raw: bytes) -> str:
    found = likely_encoding(raw)
    if found is not None:
        return f"it reads as {found}; write encoding: {found}"
    return "write `encoding:` with the file's own, such as cp1252 or gb18030, or save it as UTF-8"


def _reads(raw: bytes, encoding: str) -> bool:
    try:
        raw.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _looks_chinese(raw: bytes) -> bool:
    """Whether nine in ten of the non-ASCII characters of a gb18030 text lie in its common double-byte range."""
    characters = [c for c in raw[: 1 << 20].decode("gb18030", errors="ignore") if ord(c) > 127]
    common = sum(1 for c in characters if len(pair := c.encode("gb18030")) == 2 and pair[1] >= _GB2312_FLOOR)
    return bool(characters) and common >= 0.9 * len(characters)
