"""What makes a model folder answer as it does, in one digest. Nothing heavy."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from pathlib import Path

from compressor.model.manifest import MANIFEST_NAME, Manifest
from compressor.sources.digest import folder_digest

MODEL_FILES = (
    "*.safetensors",
    "*.onnx",
    "*.onnx.data",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "sentencepiece.bpe.model",
    "spm.model",
    "1_Pooling/config.json",
)
"""Weights, configuration and tokenizer of a model, and how a sentence encoder pools."""


def model_digest(folder: Path, *, trust_cache: bool = False) -> str:
    """SHA-256 over a model folder's weights, config, tokenizer and what its manifest says of the model.

    The verdict that stands beside the manifest of `final/` is left out: it changes nothing that the model answers. So
    are keys that the folder's compressor.json does not have: one that a later version knows changes no digest.

    Args:
        trust_cache: as of `sources.digest.file_digest`.
    """
    files = folder_digest(folder, MODEL_FILES, trust_cache=trust_cache)
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return files
    if not isinstance(manifest, dict):
        return files
    said = {field.name: manifest[field.name] for field in fields(Manifest) if field.name in manifest}
    return hashlib.sha256(json.dumps([files, said], sort_keys=True).encode()).hexdigest()
