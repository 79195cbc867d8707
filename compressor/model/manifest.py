"""compressor.json: what a model folder is, in words that need neither torch nor transformers to read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from compressor.device import ISA_FLAGS
from compressor.errors import InputError

MANIFEST_NAME = "compressor.json"
SCHEMA = 1
DIGEST_SCHEME = 1
"""How `model_digest` adds up a folder; raised when the same folder would get another digest, so that `verify` can tell
a version of this program from a change of the files."""
ENGINE_KEY = "engine"
"""Key of compressor.json for the engine that was measured to be the fastest. It is none of a Manifest's fields, so that
what is made of a model, and may not open in that engine, does not inherit it."""

UNEVEN_KEYS = ("auto_map", "layer_shapes", "head_size", "relative_attention_heads")
"""Keys of config.json that say uneven layers, which transformers' own classes do not know."""

Precision = Literal["fp32", "fp16", "bf16", "int8"]
"""In what a model file keeps and multiplies most of its weights."""


@dataclass(frozen=True)
class LayerShape:
    """One transformer layer: its heads, the width of each head, its feed-forward neurons."""

    heads: int
    head_size: int
    ffn: int


@dataclass(frozen=True)
class Shapes:
    """The encoder's size: width of the hidden states, each layer, rows of the word embedding table."""

    hidden: int
    layers: tuple[LayerShape, ...]
    vocabulary: int

    @property
    def is_stock(self) -> bool:
        """True where transformers' own configuration can say these shapes: equal layers, heads that fill the width."""
        even = len({(layer.heads, layer.head_size, layer.ffn) for layer in self.layers}) <= 1
        return even and all(layer.heads * layer.head_size == self.hidden and layer.ffn > 0 for layer in self.layers)


@dataclass(frozen=True)
class Manifest:
    """What a model folder answers and how it is fed."""

    labels: tuple[str, ...]
    """Class names in the order of their ids."""
    shapes: Shapes
    kind: str = "text-classification"
    """Task kind."""
    metric: str = "accuracy"
    text: tuple[str, ...] = ("text",)
    """Column of the text in predict.py's jsonl, or two for a pair task."""
    max_tokens: int = 128
    """Tokens a row at most, special ones included."""
    precision: Precision = "fp32"
    isa: str | None = None
    """Instructions that INT8 was made for, such as avx2; None: those of the machine that made it."""
    rows_alone: bool | None = None
    """Whether activations are scaled by what is in the batch, so that rows are asked one by one; None: those of INT8
    are."""

    @property
    def asked_alone(self) -> bool:
        """True where only a batch of one row gives a row's answer whatever its neighbours are."""
        return self.precision == "int8" if self.rows_alone is None else self.rows_alone

    def write(self, folder: Path, *, extra: Mapping[str, Any] | None = None) -> Path:
        """The path of `folder / compressor.json`, written; `extra` (such as a verdict) stands beside our keys."""
        path = folder / MANIFEST_NAME
        content = {**dict(extra or {}), "schema": SCHEMA, "digest_scheme": DIGEST_SCHEME, **asdict(self)}
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return path


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a model folder; made from config.json where this tool did not write the folder.

    Raises: InputError when the folder holds neither file, or one that cannot be read.
    """
    folder = Path(folder)
    if not (folder / MANIFEST_NAME).is_file():
        return _from_config(folder, read_config(folder))
    content = _read_json(folder / MANIFEST_NAME)
    if content.get("schema") != SCHEMA:
        raise InputError(
            f"{folder / MANIFEST_NAME} has schema {content.get('schema')!r}, this version reads {SCHEMA}; "
            "use the version of compressor that wrote it"
        )
    try:
        return Manifest(
            labels=tuple(content["labels"]),
            shapes=_shapes_from(content["shapes"]),
            kind=content["kind"],
            metric=content["metric"],
            text=tuple(content["text"]),
            max_tokens=int(content["max_tokens"]),
            precision=_precision(content["precision"]),
            isa=_isa(content.get("isa")),
            rows_alone=content.get("rows_alone"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / MANIFEST_NAME} is not a manifest: {error!r}; make the folder again") from error


def _isa(name: object) -> str | None:
    """The instructions, if they are known: taking a name for another would sum a model wrongly."""
    if name is not None and name not in ISA_FLAGS:
        raise ValueError(f"isa must be one of {', '.join(ISA_FLAGS)} (got {name!r})")
    return str(name) if name is not None else None


def recorded_engine(folder: str | Path) -> str | None:
    """The engine that `record_engine` wrote into a model folder; None where none was."""
    path = Path(folder) / MANIFEST_NAME
    name = _read_json(path).get(ENGINE_KEY) if path.is_file() else None
    if name is not None and not isinstance(name, str):
        raise InputError(f"{path}: {ENGINE_KEY} must be a name (got {name!r}); take it out, or measure again")
    return name


def record_engine(folder: str | Path, engine: str) -> None:
    """The engine, written into compressor.json beside all that stands there; raises as `require_recordable`."""
    path = require_recordable(folder)
    content = {**_read_json(path), ENGINE_KEY: engine}
    partial = path.with_name(f"partial-{MANIFEST_NAME}")
    try:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}), so the engine is not kept") from error


def require_recordable(folder: str | Path) -> Path:
    """The compressor.json that an engine can be written into; InputError where there is none, or no right to write."""
    path = Path(folder) / MANIFEST_NAME
    if not path.is_file():
        raise InputError(f"{folder} holds no {MANIFEST_NAME} to record an engine in; export the model first")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{folder} cannot be written, so no engine is kept in it; copy the folder")
    return path


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder; InputError when there is none."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no config.json, so it is no model; give the folder of a saved one")
    return _read_json(path)


def config_labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Class names of a config.json in the order of their ids; LABEL_0 and so on where it names none."""
    names = config.get("id2label")
    if not names:
        return tuple(f"LABEL_{index}" for index in range(int(config.get("num_labels") or 2)))
    return tuple(str(name) for _, name in sorted(names.items(), key=lambda item: int(item[0])))


def teacher_labels(folder: str | Path) -> tuple[str, ...] | None:
    """Class names of a fine-tuned classifier; None where it has no head or only the default names LABEL_0 and so on."""
    config = read_config(Path(folder))
    architectures: Sequence[str] = config.get("architectures") or ()
    labels = config_labels(config)
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        return None
    return None if all(re.fullmatch(r"LABEL_\d+", name) for name in labels) else labels


def config_shapes(config: Mapping[str, Any]) -> Shapes:
    """The shapes that a config.json names, stock or pruned; InputError when it names none."""
    try:
        hidden, heads, ffn = (_first(config, names) for names in (_HIDDEN, _HEADS, _FFN))
        count = _first(config, _LAYERS)
        size = int(config.get("head_size") or hidden // heads)
        pruned = config.get("layer_shapes")
        if pruned:
            layers = tuple(LayerShape(int(each["heads"]), size, int(each["ffn"])) for each in pruned)
        else:
            layers = tuple(LayerShape(heads, size, ffn) for _ in range(count))
        return Shapes(hidden=hidden, layers=layers, vocabulary=int(config["vocab_size"]))
    except (KeyError, TypeError, ValueError) as error:
        kind = config.get("model_type")
        raise InputError(f"config.json of model_type {kind!r} does not name an encoder's sizes: {error!r}") from error


_HIDDEN = ("hidden_size", "dim")
_HEADS = ("num_attention_heads", "n_heads")
_LAYERS = ("num_hidden_layers", "n_layers")
_FFN = ("intermediate_size", "hidden_dim")


def _first(config: Mapping[str, Any], names: Sequence[str]) -> int:
    for name in names:
        if name in config:
            return int(config[name])
    raise KeyError(names[0])


def _from_config(folder: Path, config: Mapping[str, Any]) -> Manifest:
    tokenizer = folder / "tokenizer_config.json"
    limits = [128, int(config.get("max_position_embeddings") or 128)]
    if tokenizer.is_file():
        limits.append(int(_read_json(tokenizer).get("model_max_length") or 128))
    return Manifest(labels=config_labels(config), shapes=config_shapes(config), max_tokens=min(limits))


def _shapes_from(content: Mapping[str, Any]) -> Shapes:
    each = content["layers"]
    layers = tuple(LayerShape(int(one["heads"]), int(one["head_size"]), int(one["ffn"])) for one in each)
    return Shapes(hidden=int(content["hidden"]), layers=layers, vocabulary=int(content["vocabulary"]))


def _precision(name: str) -> Precision:
    if name not in get_args(Precision):
        raise ValueError(f"precision must be one of {', '.join(get_args(Precision))} (got {name!r})")
    return cast(Precision, name)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object (got {type(content).__name__})")
    return content
