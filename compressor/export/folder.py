"""The folder people deploy: runs with onnxruntime, tokenizers and numpy alone, and opens in optimum."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from compressor.errors import InputError, StageError
from compressor.model.graph_file import MODEL_FILE
from compressor.model.manifest import UNEVEN_KEYS, Manifest, read_config

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
PLACES = ("_name_or_path", "name_or_path")
"""Keys of config files that say where a model once lay."""


def require_empty(out: Path) -> None:
    """Nothing, where `out` is not there or is an empty folder; StageError otherwise."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        there = "not empty" if out.is_dir() else "no folder"
        raise StageError(f"{out} is there already and {there}; give another folder or remove it")


def deploy(model: Path, source: Path, out: Path, *, manifest: Manifest) -> Path:
    """`out` with model.onnx, config.json, tokenizer files, compressor.json and predict.py.

    Args:
        model: ONNX file; may lie in `out` already.
        source: model folder whose config.json and tokenizer are taken.
        manifest: what is written to compressor.json; its precision is that of `model`.
    Raises: InputError when `source` has no tokenizer.json or config.json.
    """
    if not (source / "tokenizer.json").is_file():
        raise InputError(f"{source} holds no tokenizer.json, which predict.py needs; save its fast tokenizer there")
    out.mkdir(parents=True, exist_ok=True)
    if model.resolve() != (out / MODEL_FILE).resolve():
        shutil.copyfile(model, out / MODEL_FILE)
    _write_json(out / "config.json", stock_config(read_config(source), manifest))
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            _copy_tokenizer_file(source / name, out / name)
    manifest.write(out)
    shutil.copyfile(Path(__file__).with_name("predict.py"), out / "predict.py")
    return out


def stock_config(config: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    """config.json with a model_type that stock transformers knows and the manifest's class names.

    The true shapes of uneven layers stand in compressor.json alone.
    """
    kept = {key: value for key, value in config.items() if key not in (*PLACES, *UNEVEN_KEYS)}
    pruned = str(config.get("model_type", "")).startswith("pruned-")
    if pruned:
        kept["model_type"] = config["model_type"].removeprefix("pruned-")
        kept["architectures"] = [name.removeprefix("Pruned") for name in config.get("architectures") or ()]
    kept["id2label"] = {str(index): label for index, label in enumerate(manifest.labels)}
    kept["label2id"] = {label: index for index, label in enumerate(manifest.labels)}
    return kept


def _copy_tokenizer_file(source: Path, target: Path) -> None:
    """As it is, without the place it came from, and with a class name that transformers 4 (optimum-onnx) knows too."""
    if source.name != "tokenizer_config.json":
        shutil.copyfile(source, target)
        return
    content = json.loads(source.read_text(encoding="utf-8"))
    kept = {key: value for key, value in content.items() if key not in PLACES}
    if kept.get("tokenizer_class") == "TokenizersBackend":
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"  # the same class under its older name
    _write_json(target, kept)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
