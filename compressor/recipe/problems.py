"""Errors of pydantic as problems of a recipe: one per cause, each with its place, what was given and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from compressor.distill.settings import Term
from compressor.errors import Problem
from compressor.recipe.document import Fields, Items, Node, Scalar, plain
from compressor.recipe.found import Found, Path, locate, tag_of
from compressor.recipe.merge import close_match, did_you_mean, stage_id

Model = TypeVar("Model", bound=BaseModel)

TYPE_NAMES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "dict_type": "a map",
    "model_type": "a map",
    "model_attributes_type": "a map",
    "list_type": "a list",
    "tuple_type": "a list",
    "none_required": "null",
}
"""Errors that say that a value is of the wrong type, to the type expected."""

BOUNDS = {
    "greater_than": ("gt", "above", "choose a larger one"),
    "greater_than_equal": ("ge", "at least", "choose a larger one"),
    "less_than": ("lt", "below", "choose a smaller one"),
    "less_than_equal": ("le", "at most", "choose a smaller one"),
}
"""Errors of range, to the name of the bound, how it is said, and what to do."""

EXAMPLES = {"a whole number": "4", "a number": "0.5"}
"""Values to show where a setting has no plain default."""

SHORT_FORMS = {"sha256": "a text", "states": "a size such as 2GB", "auto": "auto"}
"""A key of a map that has a form in one word, to that form."""

LIMIT_EXAMPLES = {"size": "<= 40MB", "p50": "<= 0.1x"}
"""Limits that are not of scores, to an example of their own."""


def dotted(path: Sequence[str | int], root: Node | None = None) -> str:
    """A path as text; items of a list of stages go by their id."""
    parts = []
    node = root
    for part in path:
        name = str(part)
        if isinstance(node, Items) and isinstance(part, int) and part < len(node.nodes):
            node = node.nodes[part]
            name = stage_id(node) or name
        elif isinstance(node, Fields):
            entry = node.entries.get(str(part))
            node = entry.node if entry else None
        parts.append(name)
    return ".".join(parts)


def checked(model: type[Model], node: Fields, prefix: str = "") -> tuple[Model | None, list[Problem]]:
    """A model from a tree, and its problems.

    With problems, the model is what remains when the faulty parts are left to their defaults, so that the rest can
    still be checked; None where that is no model.
    """
    value = plain(node)
    try:
        return model.model_validate(value, by_alias=True, by_name=False), []
    except ValidationError as error:
        found = [locate(model, node, detail) for detail in error.errors()]
    problems = [_problem(item, prefix) for item in _absorbed(_settled(found)) if not _is_unknown(item)]
    for _round in range(6):
        if not _remove(value, found):
            return None, problems
        try:
            return model.model_validate(value, by_alias=True, by_name=False), problems
        except ValidationError as error:
            found = [locate(model, node, detail) for detail in error.errors()]
    return None, problems


def _is_unknown(item: Found) -> bool:
    """Whether an error only follows from a value that could not be found out."""
    node = item.node
    if item.kind == "union_tag_invalid" and isinstance(node, Fields):
        node = node.entries["of"].node
    return isinstance(node, Scalar) and node.unknown


def _remove(value: Any, found: Iterable[Found]) -> bool:
    """Take the faulty parts out of plain data; False where the fault is the whole."""
    paths = {item.path[:-1] if item.kind == "missing" else item.path for item in found}
    for path in sorted(paths, key=lambda path: [str(part).zfill(6) for part in path], reverse=True):
        if not path:
            return False
        parent = value
        for part in path[:-1]:
            inside = isinstance(parent, dict) and part in parent
            inside = inside or (isinstance(parent, list) and isinstance(part, int) and part < len(parent))
            parent = parent[part] if inside else None
        if isinstance(parent, dict):
            parent.pop(path[-1], None)
        elif isinstance(parent, list) and isinstance(path[-1], int) and path[-1] < len(parent):
            del parent[path[-1]]
    return True


# One error per cause


def _settled(found: list[Found]) -> list[Found]:
    """Of the forms that a value may take, the errors of the one that was probably meant."""
    settled = [item for item in found if not item.unions]
    points: dict[Path, dict[str, list[Found]]] = {}
    for item in found:
        if item.unions:
            length, form = item.unions[0]
            rest = replace(item, unions=item.unions[1:])
            points.setdefault(item.path[:length], {}).setdefault(form, []).append(rest)
    for point, members in points.items():
        forms = [_absorbed(_settled(errors)) for errors in members.values()]
        mismatched = [form for form in forms if any(_is_mismatch(item, point) for item in form)]
        fitting = [form for form in forms if form not in mismatched]
        deeper = [form for form in fitting if any(len(item.path) > len(point) for item in form)]
        shaped = [_settled(errors) for name, errors in members.items() if _is_of_right_shape(name, errors, point)]
        if shaped or fitting:
            meant: list[Found] = min(shaped or deeper or fitting, key=_misfit)
            settled += meant
        else:
            first = mismatched[0][0]
            names = [name for form in mismatched for item in form for name in _expected(item)]
            settled.append(replace(first, expected=tuple(dict.fromkeys(names))))
    return settled


def _is_of_right_shape(form: str, errors: list[Found], point: Path) -> bool:
    """Whether a value was read as this form and refused only then, for what it is."""
    return form.startswith("function-after") and all(
        item.kind == "value_error" and item.path == point and not item.unions[1:] for item in errors
    )


def _is_mismatch(item: Found, point: Path) -> bool:
    return item.path == point and item.kind in TYPE_NAMES


def _misfit(form: list[Found]) -> float:
    """How far a value is from a form: a key that is missing or unknown counts most."""
    return sum(0.25 if item.kind not in ("missing", "extra_forbidden") else 0.5 if item.meant else 1.0 for item in form)


def _absorbed(found: list[Found]) -> list[Found]:
    """The same less the missing keys that were misspelt: near the unknown key, or each the only one of its map."""
    kept = []
    for item in found:
        if item.kind in ("missing", "extra_forbidden"):
            around = [other for other in found if other.path[:-1] == item.path[:-1]]
            missing = [other for other in around if other.kind == "missing"]
            unknown = [other for other in around if other.kind == "extra_forbidden"]
            if item.kind == "missing" and any(other.meant == item.path[-1] for other in unknown):
                continue
            if len(missing) == len(unknown) == 1 and unknown[0].meant in (None, missing[0].path[-1]):
                if item.kind == "missing":
                    continue
                item = replace(item, known=(str(missing[0].path[-1]),))
        kept.append(item)
    return kept


# Words


def _expected(item: Found) -> tuple[str, ...]:
    if item.expected:
        return item.expected
    name = TYPE_NAMES.get(item.kind, "")
    if name == "a map" and item.known:
        short = [words for key, words in SHORT_FORMS.items() if key in item.known]
        keys = ", ".join(item.known[:8])
        return (*short, f"a map of {keys}")
    return (name,)


def given(node: Node) -> str:
    """A value as an error shows it."""
    if isinstance(node, Fields):
        return f"a map of {', '.join(node.entries)}" if node.entries else "an empty map"
    if isinstance(node, Items):
        return f"a list of {len(node.nodes)}"
    if node.value is None or isinstance(node.value, bool):
        return {None: "null", True: "true", False: "false"}[node.value]
    text = repr(node.value)
    return text if len(text) <= 60 else text[:57] + "..."


def _problem(item: Found, prefix: str) -> Problem:
    key = ".".join(part for part in (prefix, dotted(item.path)) if part)
    if item.kind == "union_tag_invalid" and isinstance(item.node, Fields):
        tag = str(item.context["tag"])
        near = close_match(tag, _tags(item)) or _tags(item)[0]
        message = f"must be one of {', '.join(_tags(item))} (got {tag!r}); did you mean {near}?"
        return Problem(str(item.node.entries["of"].node.mark), f"{key}.of", message)
    first = str(item.context.get("error", "")).partition(" ")[0]
    part = first.partition(".")[0]
    if item.kind == "value_error" and isinstance(item.node, Fields) and part in item.node.entries:
        node = item.node.entries[part].node
        rest = _message(replace(item, node=node) if part == first else item).removeprefix(f"{first} ")
        return Problem(str(node.mark), f"{key}.{part}" if key else part, rest)
    return Problem(str(item.mark), key, _message(item))


def _message(item: Found) -> str:
    got = f"(got {given(item.node)})"
    if item.kind == "missing":
        return f"is missing; add {item.path[-1]}: and its value"
    if item.kind == "extra_forbidden":
        return f"is not a key here {got}; {did_you_mean(str(item.path[-1]), item.known)}"
    if item.kind == "value_error":
        text = str(item.context.get("error", item.text))
        if item.path and item.path[-1] in LIMIT_EXAMPLES:
            text = text.replace("'<= 0.8pp'", f"'{LIMIT_EXAMPLES[str(item.path[-1])]}'")
        text = text if "(got" in text else f"{text} {got}"
        return f"{text}; {advice}" if "and below 1 (got" in text and (advice := _percent(item, 1)) else text
    if item.kind in TYPE_NAMES or item.expected:
        value = item.example if item.example is not None else EXAMPLES.get(_expected(item)[0])
        shown = value is not None and not isinstance(value, bool) and len(_expected(item)) == 1
        example = f" such as {value}" if shown else ""
        return f"must be {' or '.join(_expected(item))}{example} {got}{_quoting(item)}"
    if item.kind == "literal_error":
        choices = [part.strip("' ") for part in str(item.context["expected"]).replace(" or ", ", ").split(",")]
        word = str(item.node.value) if isinstance(item.node, Scalar) else ""
        near = close_match(word, choices)
        what = f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
        return f"must be {what} {got}; " + (f"did you mean {near}?" if near else f"write {choices[0]}, for example")
    if item.kind in BOUNDS:
        name, words, advice = BOUNDS[item.kind]
        percent = _percent(item, item.context.get("le", item.context.get("lt")))
        return f"must be {words} {item.context[name]:g} {got}; {percent or advice}"
    if item.kind in ("too_short", "too_long"):
        least, most = item.context.get("min_length"), item.context.get("max_length")
        return f"must have {f'at least {least}' if item.kind == 'too_short' else f'at most {most}'} entries {got}"
    if item.kind == "string_too_short":
        return f"must not be empty {got}; write a text"
    if item.kind == "string_pattern_mismatch" and item.context["pattern"] == "^[0-9a-f]{64}$":
        return f"must be a SHA-256 of 64 hex digits in lower case {got}; sha256sum prints it"
    if item.kind == "string_pattern_mismatch":
        return f"must match {item.context['pattern']} {got}; use only the characters shown"
    if item.kind == "union_tag_not_found":
        return f"must say what it is: add of: {_tags(item)[0]}, or another of {', '.join(_tags(item))} {got}"
    return f"is not accepted: {item.text[:1].lower()}{item.text[1:]} {got}; see compress schema"


def _tags(item: Found) -> list[str]:
    tags = item.context.get("expected_tags")
    return str(tags).replace("'", "").split(", ") if tags else [str(tag_of(form)) for form in get_args(Term)]


def _quoting(item: Found) -> str:
    """Advice where quotes, or their lack, made the type wrong."""
    value = item.node.value if isinstance(item.node, Scalar) else None
    if item.kind in ("int_type", "float_type") and isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return ""
        return f"; write {value} without quotes"
    if item.kind == "list_type" and isinstance(value, str | int | float):
        return f"; write [{value}]"
    if item.kind == "string_type" and isinstance(value, int | float) and not item.expected:
        return f"; quote it: '{value}'"
    return ""


def _percent(item: Found, bound: float | None) -> str:
    """Advice where a share, which ends at the bound 1, was written as a percentage."""
    value = item.node.value if isinstance(item.node, Scalar) else None
    if bound == 1 and isinstance(value, int | float) and 1 < value <= 100:
        return f"write {value / 100:g} for {value:g} percent"
    return ""
