"""A YAML text as a tree in which every key and value knows its place, made from the events of PyYAML's C parser."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from compressor.errors import Problem

MAX_DEPTH = 64
MAX_BYTES = 1_000_000
MAX_DIGITS = 300


@dataclass(frozen=True)
class Mark:
    """A place in a file; `line` and `column` count from 1, None where there are none (`--set`)."""

    file: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Scalar:
    """A text, number, truth value or None."""

    value: str | int | float | bool | None
    mark: Mark = field(compare=False)
    unknown: bool = field(default=False, compare=False)
    """True where the value could not be found out and the reason is noted; it causes no further problem."""


@dataclass(frozen=True)
class Items:
    """A list."""

    nodes: tuple[Node, ...]
    mark: Mark = field(compare=False)


@dataclass(frozen=True)
class Entry:
    """A value under a key, with the key's place."""

    node: Node
    mark: Mark = field(compare=False)


@dataclass(frozen=True)
class Fields:
    """A map; keys are texts as written."""

    entries: Mapping[str, Entry]
    mark: Mark = field(compare=False)

    def get(self, key: str) -> Node | None:
        """The value under `key`, None if there is none or it is null."""
        entry = self.entries.get(key)
        empty = entry is None or (
            isinstance(entry.node, Scalar) and entry.node.value is None and not entry.node.unknown
        )
        return None if entry is None or empty else entry.node

    def without(self, *keys: str) -> Fields:
        """The same map less these keys."""
        return Fields({key: entry for key, entry in self.entries.items() if key not in keys}, self.mark)

    def with_entry(self, key: str, entry: Entry) -> Fields:
        """The same map with this entry, in its old place if the key was there."""
        return Fields({**self.entries, key: entry}, self.mark)


Node = Scalar | Items | Fields


@dataclass(frozen=True)
class Document:
    """What was read: the tree (None if the text is unusable) and what is wrong with the text itself."""

    root: Node | None
    problems: tuple[Problem, ...]


def plain(node: Node) -> Any:
    """The tree as dicts, lists and scalars.

    >>> plain(read_document("{a: [1, 5e-5, on, 0x10, ~]}", "x").root)
    {'a': [1, 5e-05, 'on', 16, None]}
    """
    if isinstance(node, Fields):
        return {key: plain(entry.node) for key, entry in node.entries.items()}
    if isinstance(node, Items):
        return [plain(item) for item in node.nodes]
    return node.value


def resolve_scalar(text: str) -> str | int | float | bool | None:
    """What an unquoted text means in the YAML 1.2 core schema; numbers of over 300 digits stay texts.

    >>> resolve_scalar("5e-5"), resolve_scalar("on"), resolve_scalar("2020-01-01"), resolve_scalar("0o17")
    (5e-05, 'on', '2020-01-01', 15)
    """
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE"):
        return True
    if text in ("false", "False", "FALSE"):
        return False
    if len(text) > MAX_DIGITS:
        return text
    if re.fullmatch(r"[-+]?[0-9]+", text):
        return int(text)
    if re.fullmatch(r"0o[0-7]+|0x[0-9a-fA-F]+", text):
        return int(text, 0)
    if re.fullmatch(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", text):
        return float(text)
    if re.fullmatch(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", text):
        return float(text.replace(".", ""))
    return text


class _StopError(Exception):
    """The text cannot be read further; its problem is already noted."""


class _Builder:
    """Turns events into a tree and notes what is refused on the way."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.events: Iterator[Any] = iter(yaml.parse(text, Loader=yaml.CLoader))

    def mark(self, event: Any) -> Mark:
        return Mark(self.file, event.start_mark.line + 1, event.start_mark.column + 1)

    def note(self, mark: Mark, key: str, message: str) -> None:
        self.problems.append(Problem(str(mark), key, message))

    def build(self) -> Node | None:
        """The one document's tree; None for an empty text."""
        next(self.events)
        root: Node | None = None
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    self.note(self.mark(event), "", "starts a second document; a recipe is one: remove this '---'")
                    raise _StopError
                root = self.node(next(self.events), (), 1)
        return root

    def node(self, event: Any, path: tuple[str, ...], depth: int) -> Node:
        mark, key = self.mark(event), ".".join(path)
        if depth > MAX_DEPTH:
            self.note(mark, "", f"is nested deeper than {MAX_DEPTH} levels; a recipe needs far fewer")
            raise _StopError
        if isinstance(event, yaml.AliasEvent):
            advice = "write the value out, or use vars: and '${name}'"
            self.note(mark, key, f"uses an alias (got *{event.anchor}); {advice}")
            return Scalar(None, mark, unknown=True)
        if event.anchor is not None:
            self.note(mark, key, f"has an anchor (got &{event.anchor}); remove it, or use vars: and '${{name}}'")
        if event.tag is not None:
            self.note(mark, key, f"has a tag (got {event.tag}); remove it: a recipe holds plain values only")
        if isinstance(event, yaml.ScalarEvent):
            return Scalar(resolve_scalar(event.value) if event.implicit[0] else event.value, mark)
        if isinstance(event, yaml.SequenceStartEvent):
            return Items(tuple(self.items(path, depth)), mark)
        return Fields(self.fields(path, depth), mark)

    def items(self, path: tuple[str, ...], depth: int) -> Iterator[Node]:
        place = 0
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            yield self.node(event, (*path, str(place)), depth + 1)
            place += 1

    def fields(self, path: tuple[str, ...], depth: int) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            mark = self.mark(event)
            key = event.value if isinstance(event, yaml.ScalarEvent) else None
            if key is None or event.anchor is not None or event.tag is not None:
                self.note(mark, ".".join(path), "has a key that is not a plain text; write a name before the colon")
                self.node(event, path, depth + 1)
                key = None
            value = self.node(next(self.events), (*path, key or "?"), depth + 1)
            if key is None:
                continue
            if key == "<<":
                self.note(mark, ".".join((*path, key)), "merges with YAML's <<; use extends: instead")
            elif key in found:
                first = found[key].mark
                message = f"is written twice (first in line {first.line}, which is kept); remove one of them"
                self.note(mark, ".".join((*path, key)), message)
            else:
                found[key] = Entry(value, mark)
        return found


def _explain(error: yaml.YAMLError, text: str, file: str) -> Problem:
    """The problem behind a syntax error, with what to do."""
    lines = text.split("\n")
    if isinstance(error, yaml.reader.ReaderError):
        before = text.encode()[: error.position].decode("utf-8", "ignore").split("\n")
        mark = Mark(file, len(before), len(before[-1]) + 1)
        return Problem(str(mark), "", f"holds a control character (got U+{error.character:04X}); remove it")
    place = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if place is None:
        return Problem(file, "", f"is not YAML: {error}")
    context = getattr(error, "context_mark", None)
    for number in dict.fromkeys([place.line, *([context.line] if context else [])]):
        line = lines[number] if number < len(lines) else ""
        if found := re.search(r"(?:^|[\s{\[,])([\w@.-]+:\s+|-\s+)?(>=?\s*[^\s>|+-][^,}\]#]*)", line):
            written = found[2].strip()
            mark = Mark(file, number + 1, found.start(2) + 1)
            key = (found[1] or "").strip(" :-")
            return Problem(str(mark), key, f"starts with '>' (got {written}); quote it: '{written}'")
    what = getattr(error, "problem", None) or "cannot be read"
    around = getattr(error, "context", None)
    line = lines[place.line].strip() if place.line < len(lines) else ""
    got = f"{f' {around}' if around else ''}{f' (got {line[:80]!r})' if line else ''}"
    message = f"is not YAML: {what}{got}; check quotes, brackets and indentation"
    return Problem(str(Mark(file, place.line + 1, place.column + 1)), "", message)


def read_document(text: str, file: str) -> Document:
    """The tree of one YAML text; never raises, says in `problems` what is refused.

    `file` is the name that marks carry. A syntax error or too deep nesting leaves no tree; a duplicate key keeps its
    first value, so that everything else is still checked.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        return Document(None, (Problem(file, "", f"is larger than {MAX_BYTES:,} bytes; a recipe is a short text"),))
    builder: _Builder | None = None
    try:
        builder = _Builder(text, file)
        root = builder.build()
    except _StopError:
        root = None
    except yaml.YAMLError as error:
        noted = tuple(builder.problems) if builder else ()
        return Document(None, (*noted, _explain(error, text, file)))
    return Document(root, tuple(builder.problems) if builder else ())


def read_file(path: Path, file: str | None = None) -> Document:
    """The tree of a YAML file in UTF-8; unreadable files give a problem, not an exception."""
    name = file or str(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            return Document(None, (Problem(name, "", f"is larger than {MAX_BYTES:,} bytes; a recipe is a short text"),))
        content = path.read_bytes()
    except OSError as error:
        return Document(None, (Problem(name, "", f"cannot be read: {error.strerror}; give the path of a recipe"),))
    try:
        return read_document(content.decode("utf-8-sig"), name)
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line = before.count(b"\n") + 1
        column = error.start - (before.rfind(b"\n") + 1) + 1
        message = f"is not UTF-8 (byte 0x{content[error.start]:02x} at offset {error.start}); save the file as UTF-8"
        return Document(None, (Problem(f"{name}:{line}:{column}", "", message),))
