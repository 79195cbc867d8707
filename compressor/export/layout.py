"""How the files of a deployed folder lie: flat, or as the Hugging Face hub's readers expect; and what serves it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from compressor.errors import InputError
from compressor.export.serve import SERVERS
from compressor.export.settings import Layout, Server
from compressor.model.graph_file import HUB_FILES, MODEL_FILE
from compressor.model.manifest import read_manifest


def arrange(folder: Path, *, layout: Layout = "flat", serve: Sequence[Server] = (), fp32: Path | None = None) -> Path:
    """A flat deployed folder, changed in place to a layout, with the files that serve it under `serve/`.

    Args:
        layout: `hub` puts the graph to onnx/model.onnx, or by its precision to onnx/model_quantized.onnx,
            model_fp16.onnx or model_bf16.onnx; config, tokenizer, compressor.json and predict.py stay at the top.
        serve: servers to write a configuration or program for.
        fp32: ONNX file of the model before it was quantized, put to onnx/model.onnx beside the other in layout `hub`,
            where optimum and sentence-transformers look first; None leaves it out.
    Raises: InputError where the folder holds no model.onnx at its top.
    """
    if not (folder / MODEL_FILE).is_file():
        raise InputError(f"{folder} holds no {MODEL_FILE} at its top, so it cannot be laid out; export the model first")
    if layout == "hub":
        _to_hub(folder, fp32)
    for name in serve:
        SERVERS[name](folder)
    return folder


def _to_hub(folder: Path, fp32: Path | None) -> None:
    precision = read_manifest(folder).precision
    target = folder / HUB_FILES[precision]
    target.parent.mkdir(exist_ok=True)
    (folder / MODEL_FILE).replace(target)
    if fp32 is not None and precision != "fp32":
        shutil.copyfile(fp32, folder / HUB_FILES["fp32"])
