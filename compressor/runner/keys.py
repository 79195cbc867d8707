"""The key of a stage: a digest of all that decided its output, and words for what differs between two."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

from compressor.device import native_bf16
from compressor.stage import Stage

SCHEMA = 1

LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "torch-pruning",
    "optimum",
    "onnx",
    "onnxruntime",
    "evaluate",
    "scikit-learn",
    "numpy",
)
"""Libraries whose version can change a number."""


def library_versions() -> dict[str, str]:
    """Version of each library that can change a number; read from its metadata, nothing is imported."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def canonical(value: Any) -> str:
    """JSON text that is equal for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """SHA-256 in hex of a value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def key_parts(
    stage: Stage,
    *,
    inputs: Mapping[str, str],
    rows: Mapping[str, str],
    gate_against: Mapping[str, str],
    seed: int,
    threads: int,
    device: str,
    smoke: bool,
) -> dict[str, Any]:
    """All that decides a stage's output.

    Args:
        stage: with its settings filled in.
        inputs: role to the digest of the model folder read (weights, config, tokenizer), or of the file.
        rows: name to the digest of the rows read, of the label names and of the length limit.
        gate_against: metric of each drop limit to the key of the stage that it compares with.
        seed: of the recipe.
        threads: on which the arithmetic's order depends.
        device: class of the device, `cpu` or `gpu`.
        smoke: a smoke run has keys of its own.
    """
    bf16 = native_bf16(device) if stage.trains and device == "cpu" else None
    return {
        "schema": SCHEMA,
        "verb": stage.verb,
        "revision": stage.revision,
        "settings": stage.key_settings(),
        "gate": _gate_settings(stage),
        "gate_against": dict(gate_against),
        "inputs": dict(inputs),
        "rows": dict(rows),
        "seed": seed,
        "threads": threads,
        "device": device,
        "conditions": {**stage.conditions(device), "bf16": bf16},
        "smoke": smoke,
        "versions": library_versions(),
    }


def _gate_settings(stage: Stage) -> dict[str, Any] | None:
    """The gate without the ids it names; their stages' keys stand for them."""
    if stage.gate is None:
        return None
    gate: dict[str, Any] = stage.gate.model_dump(mode="json", by_alias=True)
    return {
        name: {key: value for key, value in entry.items() if key != "vs"} if isinstance(entry, dict) else entry
        for name, entry in gate.items()
    }


def difference(old: Any, new: Any, *, path: str = "") -> str | None:
    """The first component that differs, as `settings.steps 4 -> 6`; None where nothing does.

    >>> difference({"settings": {"steps": 4}}, {"settings": {"steps": 6}})
    'settings.steps 4 -> 6'
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*new, *(name for name in old if name not in new)]:
            found = difference(old.get(name), new.get(name), path=f"{path}.{name}" if path else name)
            if found:
                return found
        return None
    if old == new:
        return None
    if _is_digest(old) and _is_digest(new):
        return f"{path} changed"
    return f"{path} {canonical(old)} -> {canonical(new)}"


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64
