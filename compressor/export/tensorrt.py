"""The file that TensorRT takes beside model.onnx: the graph as traced, since it reads none of the fused operators."""

from __future__ import annotations

from pathlib import Path

from compressor.data.encode import collate, open_encoder
from compressor.errors import InputError
from compressor.export.exporter import SAMPLE_TEXTS, input_names, trace
from compressor.export.parity import require_alike
from compressor.model.encoders import load_model
from compressor.model.manifest import read_manifest
from compressor.runtime.engine import TENSORRT_FILE
from compressor.runtime.onnx import OnnxEngine
from compressor.runtime.torch import TorchEngine


def write_tensorrt(torch_folder: Path, folder: Path) -> Path:
    """`folder / model.tensorrt.onnx`: the model of `torch_folder` in fp32, which TensorRT computes in any precision.

    INT8 for TensorRT is written by quantize (try: [static]) for a target with engine tensorrt instead.

    Raises: InputError where `folder` holds another model, StageError where the graph answers otherwise than PyTorch.
    """
    ours, theirs = read_manifest(torch_folder), read_manifest(folder)
    if (ours.labels, ours.shapes) != (theirs.labels, theirs.shapes):
        raise InputError(f"{folder} holds another model than {torch_folder}; give the folder that was exported from it")
    model = load_model(torch_folder, attention="eager").eval()
    graph = trace(model, input_names(model)).SerializeToString(deterministic=True)
    encoder = open_encoder(torch_folder, ours.max_tokens)
    rows = encoder.encode(list(SAMPLE_TEXTS))
    inputs = collate(rows, range(len(rows)), encoder.pad_id)
    reference = TorchEngine(torch_folder).logits(inputs)
    require_alike(reference, OnnxEngine(graph, spinning=False).logits(inputs), what=f"the graph of {torch_folder}")
    path = folder / TENSORRT_FILE
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(graph)
    partial.replace(path)
    return path
