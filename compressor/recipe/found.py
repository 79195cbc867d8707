"""Where in a recipe's tree an error of pydantic is, and which forms would have been right there."""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from compressor.recipe.document import Fields, Items, Mark, Node
from compressor.recipe.merge import close_match
from compressor.stage import ScoreLimit

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Found:
    """One error with the place in the tree that it is about."""

    kind: str
    path: Path
    """Keys from the root of the model; for a missing or unknown key, that key is the last."""
    unions: tuple[tuple[int, str], ...]
    """Where a choice of forms was tried: length of the path there, and name of the form."""
    node: Node
    """The value, or the map in which a key is missing."""
    mark: Mark
    context: dict[str, Any]
    text: str
    known: tuple[str, ...]
    """Keys that the map around the error takes."""
    example: Any
    expected: tuple[str, ...] = ()
    """Forms that would have been right, where several were tried."""

    @property
    def meant(self) -> str | None:
        """For an unknown key, the key that was probably meant."""
        return close_match(str(self.path[-1]), self.known) if self.kind == "extra_forbidden" else None


def locate(model: type[BaseModel], root: Node, detail: Any) -> Found:
    """The place in the tree, the keys known there and the default, for one of pydantic's errors."""
    node, path, unions = root, (), []  # type: Node, Path, list[tuple[int, str]]
    mark = root.mark
    forms: list[Any] = [model]
    example: Any = None
    around: list[Any] = forms
    for place, part in enumerate(detail["loc"]):
        last = place == len(detail["loc"]) - 1
        if isinstance(node, Fields) and str(part) in node.entries:
            entry = node.entries[str(part)]
            mark = entry.mark if last and detail["type"] == "extra_forbidden" else entry.node.mark
            node, path, around = entry.node, (*path, str(part)), forms
            example = _example(forms, str(part))
            forms = _step(forms, part)
        elif isinstance(node, Items) and isinstance(part, int) and part < len(node.nodes):
            node = node.nodes[part]
            mark, path, around, example = node.mark, (*path, part), forms, None
            forms = _step(forms, part)
        elif last and detail["type"] == "missing":
            path, around, forms, example = (*path, str(part)), forms, _step(forms, part), None
        elif part != "[key]":
            unions.append((len(path), str(part)))
            forms = _step(forms, part)
    keys = around if detail["type"] in ("missing", "extra_forbidden") else forms
    return Found(
        detail["type"],
        path,
        tuple(unions),
        node,
        mark,
        dict(detail.get("ctx") or {}),
        detail["msg"],
        tuple(_keys(keys)),
        example,
    )


def _forms(annotation: Any) -> list[Any]:
    """The types that an annotation allows, its wrappers taken off."""
    if get_origin(annotation) is Annotated:
        return _forms(get_args(annotation)[0])
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return [form for argument in get_args(annotation) for form in _forms(argument)]
    return [annotation]


def _field(form: Any, key: str) -> FieldInfo | None:
    if not (isinstance(form, type) and issubclass(form, BaseModel)):
        return None
    return next((info for name, info in form.model_fields.items() if (info.alias or name) == key), None)


def _step(forms: list[Any], part: str | int) -> list[Any]:
    """The types allowed below `part`; a part that is no key names one form among those given."""
    below: list[Any] = []
    for form in forms:
        if info := _field(form, str(part)):
            below += _forms(info.annotation)
        elif get_origin(form) in (list, tuple) and isinstance(part, int):
            below += _forms(get_args(form)[0])
        elif get_origin(form) is dict:
            below += _forms(get_args(form)[1])
    if below:
        return below
    models = [form for form in forms if isinstance(form, type) and issubclass(form, BaseModel)]
    named = [form for form in models if form.__name__ in str(part) or tag_of(form) == part]
    open_maps = [form for form in models if form.model_config.get("extra") == "allow"]
    return named or ([ScoreLimit] if open_maps else models)  # the only open maps are metric names to limits


def tag_of(form: type[BaseModel]) -> Any:
    return form.model_fields["of"].default if "of" in form.model_fields else None


def _keys(forms: list[Any]) -> list[str]:
    names: list[str] = []
    for form in forms:
        if isinstance(form, type) and issubclass(form, BaseModel):
            names += [info.alias or name for name, info in form.model_fields.items()]
    return list(dict.fromkeys(names))


def _example(forms: list[Any], key: str) -> Any:
    """The default under `key` where it is a plain value."""
    for form in forms:
        info = _field(form, key)
        if info is not None and isinstance(info.default, str | int | float):
            return info.default
    return None
