"""One tree out of several: `extends`, `--set` and `vars`."""

from __future__ import annotations

import difflib
import importlib.resources
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from compressor.errors import Problem
from compressor.recipe.document import Entry, Fields, Items, Mark, Node, Scalar, read_document, read_file

BESIDE_VERB = ("id", "from", "gate", "drop")
"""Keys of a stage that are not its verb."""

_VARIABLE = re.compile(r"\$\{\s*([A-Za-z_][A-Za-z0-9_-]*)\s*\}")


def close_match(word: str, choices: Iterable[str]) -> str | None:
    """The choice that `word` probably meant, None if nothing is near.

    >>> close_match("tempreature", ["temperature", "weight"])
    'temperature'
    """
    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Advice after an unknown word: the one probably meant, else all there are."""
    known = list(choices)
    near = close_match(word, known)
    return f"did you mean {near}?" if near else f"choose from {', '.join(known)}"


def builtin_names() -> list[str]:
    """Names of the recipes that ship with the package, as `extends: builtin:NAME` takes them."""
    folder = importlib.resources.files("compressor.builtin")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


class Loader:
    """Reads a recipe and all that it extends; collects problems instead of raising them."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.vars_known = True
        """False where `vars` itself is wrong, so that its uses are no problems of their own."""

    def note(self, mark: Mark, key: str, message: str) -> None:
        self.problems.append(Problem(str(mark), key, message))

    def file(self, path: Path, *, name: str, chain: tuple[str, ...] = ()) -> Fields | None:
        """The merged tree of a recipe file; None where nothing could be read."""
        document = read_file(path, name)
        self.problems.extend(document.problems)
        return self._extended(document.root, Mark(name, 1, 1), path.parent, (*chain, str(path.resolve())))

    def builtin(self, name: str, *, chain: tuple[str, ...] = ()) -> Fields | None:
        """The merged tree of a recipe that ships with the package."""
        text = importlib.resources.files("compressor.builtin").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
        document = read_document(text, f"builtin:{name}")
        self.problems.extend(document.problems)
        return self._extended(document.root, Mark(f"builtin:{name}", 1, 1), Path(), (*chain, f"builtin:{name}"))

    def _extended(self, root: Node | None, mark: Mark, folder: Path, chain: tuple[str, ...]) -> Fields | None:
        if not isinstance(root, Fields):
            if root is not None or not self.problems:
                self.note(root.mark if root else mark, "", "must be a map of keys such as data: and teacher:")
            return None
        merged: Fields | None = None
        for source in self._sources(root):
            parent = self._parent(source, folder, chain)
            if parent is not None:
                merged = parent if merged is None else self.merge(merged, parent)
        own = root.without("extends")
        return self.merge(merged, own) if merged is not None else self.merge(own.without("stages"), own)

    def _sources(self, root: Fields) -> list[Scalar]:
        node = root.get("extends")
        if node is None:
            return []
        nodes = node.nodes if isinstance(node, Items) else (node,)
        found = [item for item in nodes if isinstance(item, Scalar) and isinstance(item.value, str)]
        if len(found) < len(nodes):
            self.note(node.mark, "extends", "must be a list of recipes such as [builtin:text-classification]")
        return found

    def _parent(self, source: Scalar, folder: Path, chain: tuple[str, ...]) -> Fields | None:
        text = str(source.value)
        if text.startswith("builtin:"):
            name = text.removeprefix("builtin:")
            if name not in builtin_names():
                names = [f"builtin:{known}" for known in builtin_names()]
                self.note(source.mark, "extends", f"names no builtin recipe (got {text}); {did_you_mean(text, names)}")
                return None
            if text in chain:
                self.note(source.mark, "extends", f"goes round in a circle (got {text}); remove one of the two extends")
                return None
            return self.builtin(name, chain=chain)
        path = folder / text
        if str(path.resolve()) in chain:
            self.note(source.mark, "extends", f"goes round in a circle (got {text}); remove one of the two extends")
            return None
        if not is_file(path):
            here = [entry.name for entry in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
            near = close_match(path.name, here)
            advice = f"did you mean {near}?" if near else "give a path from this file's folder, or builtin:NAME"
            self.note(source.mark, "extends", f"names no file (got {text}); {advice}")
            return None
        return self.file(path, name=str(path), chain=chain)

    def merge(self, first: Fields, second: Fields) -> Fields:
        """`second` over `first`: maps deeply, lists replaced, `stages` by id."""
        merged = first
        for key, entry in second.entries.items():
            old = first.entries.get(key)
            node = entry.node
            if key == "stages" and isinstance(node, Items):
                before = old.node if old is not None and isinstance(old.node, Items) else Items((), node.mark)
                node = self._merge_stages(before, node)
            elif old is not None:
                node = _merge_nodes(old.node, node)
            merged = merged.with_entry(key, Entry(node, entry.mark))
        return merged

    def _merge_stages(self, first: Items, second: Items) -> Items:
        stages = list(first.nodes)
        placed = {stage_id(node): place for place, node in enumerate(stages) if stage_id(node)}
        inherited = set(placed)
        for node in second.nodes:
            name = stage_id(node)
            if isinstance(node, Fields) and "drop" in node.entries:
                self._drop(node, name, stages, placed)
            elif name in inherited and isinstance(node, Fields):
                place = placed[name]
                inherited.discard(name)
                stages[place] = _merge_stage(stages[place], node)
            else:
                stages.append(node)
        return Items(tuple(node for node in stages if not _dropped(node)), second.mark)

    def _drop(self, node: Fields, name: str | None, stages: list[Node], placed: dict[str | None, int]) -> None:
        flag = node.entries["drop"].node
        mark = node.entries["drop"].mark
        if not (isinstance(flag, Scalar) and flag.value is True):
            self.note(mark, f"stages.{name}.drop", f"must be true{_got(flag)}; leave it out to keep the stage")
        elif extra := [key for key in node.entries if key not in ("id", "drop")]:
            self.note(mark, f"stages.{name}.drop", f"stands alone beside id (got {', '.join(extra)} too); remove one")
        elif name not in placed:
            known = [str(other) for other in placed]
            advice = did_you_mean(str(name), known) if known else "no recipe is extended that has stages"
            self.note(node.mark, f"stages.{name}", f"drops a stage that is not there; {advice}")
        else:
            stages[placed[name]] = node

    def set_value(self, root: Fields, assignment: str) -> Fields:
        """The tree with one `KEY=VALUE` of the command line in it; VALUE is YAML."""
        mark = Mark(f"--set {assignment}")
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip() or any(not part for part in key.strip().split(".")):
            self.note(mark, "", "must be KEY=VALUE such as stages.slim.prune.steps=4")
            return root
        document = read_document(text, mark.file)
        if document.problems:
            self.note(mark, key, document.problems[0].message)
            return root
        value = _placed(document.root if document.root is not None else Scalar(None, mark), mark)
        changed = self._set(root, key.strip().split("."), value, (), mark)
        return changed if isinstance(changed, Fields) else root

    def _set(
        self, node: Node | None, path: Sequence[str], value: Node, done: tuple[str, ...], mark: Mark
    ) -> Node | None:
        """`node` with `value` at `path` below it; None where the path leads nowhere (noted)."""
        if not path:
            return value
        name, rest = path[0], path[1:]
        if isinstance(node, Items):
            names = [stage_id(item) or str(place) for place, item in enumerate(node.nodes)]
            if done != ("stages",):
                names = [str(place) for place in range(len(node.nodes))]
            if name not in names:
                advice = did_you_mean(name, names) if names else "the list is empty"
                self.note(mark, ".".join((*done, name)), f"is not in {'.'.join(done)} (got {name}); {advice}")
                return None
            place = names.index(name)
            changed = self._set(node.nodes[place], rest, value, (*done, name), mark)
            nodes = (*node.nodes[:place], changed, *node.nodes[place + 1 :]) if changed is not None else node.nodes
            return Items(nodes, node.mark)
        if isinstance(node, Scalar) and node.value is not None:
            self.note(mark, ".".join(done), f"is {node.value!r}, not a map{_got(value)}; set {'.'.join(done)} itself")
            return None
        fields = node if isinstance(node, Fields) else Fields({}, mark)
        old = fields.entries.get(name)
        changed = self._set(old.node if old else None, rest, value, (*done, name), mark)
        return None if changed is None else fields.with_entry(name, Entry(changed, mark))

    def substitute(self, root: Fields) -> Fields:
        """The tree with `${name}` replaced by `vars.name`, which keeps its type where it stands alone."""
        node = root.get("vars")
        if node is not None and not isinstance(node, Fields):
            self.note(node.mark, "vars", "must be a map of names to values such as {length: 128}")
        misspelt = node is None and any(close_match(key, ["vars"]) for key in root.entries)
        if misspelt or not (node is None or isinstance(node, Fields)):
            self.vars_known = False
        values = node.entries if isinstance(node, Fields) else {}
        for name, entry in list(values.items()):
            if isinstance(entry.node, Scalar) and "${" in str(entry.node.value):
                message = f"uses another variable (got {entry.node.value!r}); write its value out"
                self.note(entry.node.mark, f"vars.{name}", message)
                values = {**values, name: Entry(Scalar(None, entry.node.mark, unknown=True), entry.mark)}
        changed = self._filled(root.without("vars"), {name: entry.node for name, entry in values.items()}, ())
        assert isinstance(changed, Fields)
        return changed.with_entry("vars", root.entries["vars"]) if isinstance(node, Fields) else changed

    def _filled(self, node: Node, values: dict[str, Node], path: tuple[str, ...]) -> Node:
        if isinstance(node, Fields):
            entries = {
                key: Entry(self._filled(entry.node, values, (*path, key)), entry.mark)
                for key, entry in node.entries.items()
            }
            return Fields(entries, node.mark)
        if isinstance(node, Items):
            names = [stage_id(item) or str(place) for place, item in enumerate(node.nodes)]
            filled = (self._filled(item, values, (*path, name)) for item, name in zip(node.nodes, names, strict=True))
            return Items(tuple(filled), node.mark)
        if not isinstance(node.value, str) or "${" not in node.value:
            return node
        return self._filled_text(node, node.value, values, ".".join(path))

    def _filled_text(self, node: Scalar, text: str, values: dict[str, Node], key: str) -> Node:
        names = _VARIABLE.findall(text)
        if "${" in _VARIABLE.sub("", text):
            self.note(node.mark, key, f"has a '${{' that names no variable (got {text!r}); write '${{name}}'")
            return Scalar(None, node.mark, unknown=True)
        for name in names:
            if name not in values:
                if not self.vars_known:
                    return Scalar(None, node.mark, unknown=True)
                advice = did_you_mean(name, values) if values else f"add vars: {{{name}: ...}}"
                self.note(node.mark, key, f"uses a variable that is not in vars (got {text!r}); {advice}")
                return Scalar(None, node.mark, unknown=True)
        if whole := _VARIABLE.fullmatch(text.strip()):
            return _placed(values[whole[1]], node.mark)
        parts = []
        for name in names:
            value = values[name]
            if not isinstance(value, Scalar):
                advice = f"let '${{{name}}}' stand alone"
                self.note(node.mark, key, f"puts a list or map into a text (got {text!r}); {advice}")
                return Scalar(None, node.mark, unknown=True)
            if value.unknown:
                return Scalar(None, node.mark, unknown=True)
            parts.append(str(value.value))
        pieces = iter(parts)
        return Scalar(_VARIABLE.sub(lambda _found: next(pieces), text), node.mark)


def stage_id(node: Node) -> str | None:
    """The id that a stage's map carries, None if it carries none."""
    found = node.get("id") if isinstance(node, Fields) else None
    return str(found.value) if isinstance(found, Scalar) and not found.unknown else None


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name too long for one is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def _dropped(node: Node) -> bool:
    return isinstance(node, Fields) and "drop" in node.entries


def _got(node: Node) -> str:
    return f" (got {node.value!r})" if isinstance(node, Scalar) else ""


def _merge_nodes(first: Node, second: Node) -> Node:
    """`second` over `first`: two maps become one, anything else is replaced."""
    if not (isinstance(first, Fields) and isinstance(second, Fields)):
        return second
    merged = Fields(first.entries, second.mark)
    for key, entry in second.entries.items():
        old = first.entries.get(key)
        node = _merge_nodes(old.node, entry.node) if old else entry.node
        merged = merged.with_entry(key, Entry(node, entry.mark))
    return merged


def _merge_stage(first: Node, second: Fields) -> Node:
    """A stage over the inherited one of its id; another verb replaces the inherited verb."""
    if not isinstance(first, Fields):
        return second
    verbs = [key for key in second.entries if key not in BESIDE_VERB]
    if verbs:
        first = first.without(*(key for key in first.entries if key not in BESIDE_VERB and key not in verbs))
    return _merge_nodes(first, second)


def _placed(node: Node, mark: Mark) -> Node:
    """The same values, all at `mark`."""
    if isinstance(node, Fields):
        return Fields({key: Entry(_placed(entry.node, mark), mark) for key, entry in node.entries.items()}, mark)
    if isinstance(node, Items):
        return Items(tuple(_placed(item, mark) for item in node.nodes), mark)
    return Scalar(node.value, mark, unknown=node.unknown)
