"""onnxruntime on an NVIDIA device: through its CUDA provider, and through TensorRT with a file of its own.

Refused is what would be done on the processor without a word: a provider that is not there, and INT8 through CUDA.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import InputError
from compressor.model.graph_file import MODEL_FILE, ROUNDED, model_file, open_graph
from compressor.model.manifest import read_manifest
from compressor.runtime.bound import BoundEngine
from compressor.runtime.engine import TENSORRT_FILE, TENSORRT_ROWS, Opening
from compressor.runtime.onnx import Providers, session
from compressor.sources.cache import cache_folder

if TYPE_CHECKING:
    from onnx import ModelProto

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
INT8_ON_CUDA = (
    "onnxruntime's CUDA provider has no INT8 kernels, so its nodes would fall back to the processor; "
    "export the model with precision fp16 or bf16 for device gpu, or write it for engine tensorrt"
)
FOR_TENSORRT = (
    "quantize for a target with engine: tensorrt (try: [static]), or write the unfused graph beside it with "
    "export.tensorrt.write_tensorrt"
)


def open_cuda(folder: Path, opening: Opening) -> BoundEngine:
    """The model file through CUDA, with I/O binding and CUDA graphs.

    Raises: InputError for an INT8 model, a precision other than the file's, or where the provider cannot start.
    """
    path = model_file(folder) or folder / MODEL_FILE
    if _operators(open_graph(path, weights=False)) & ROUNDED:  # what only reads weights of few bits runs there
        raise InputError(f"{path} is INT8: {INT8_ON_CUDA}")
    if opening.precision != "fp32":
        raise InputError(
            f"engine onnxruntime computes as {path} says (got precision {opening.precision}); export the model in it"
        )
    require_provider(CUDA, "onnxruntime")
    return _open(path, folder, opening, name="onnxruntime", providers=((CUDA, cuda_options(opening.stream)),))


def open_tensorrt(folder: Path, opening: Opening) -> BoundEngine:
    """model.tensorrt.onnx, else the model file, through TensorRT, which makes its kernels once and keeps them cached.

    Raises: InputError for fused operators, INT8 other than symmetric s8, or where the provider cannot start.
    """
    path = folder / TENSORRT_FILE
    if not path.is_file():
        path = model_file(folder) or folder / MODEL_FILE
    graph = open_graph(path)
    require_standard(graph, path)
    int8 = has_int8(graph)
    if int8:
        require_symmetric(graph, path)
    require_provider(TENSORRT, "tensorrt")
    feeds = tuple(each.name for each in graph.graph.input)
    most = read_manifest(folder).max_tokens
    options = tensorrt_options(path, opening, inputs=feeds, most_tokens=most, int8=int8)
    providers = ((TENSORRT, options), (CUDA, cuda_options(opening.stream)))
    return _open(path, folder, opening, name="tensorrt", providers=providers)


def require_provider(provider: str, engine: str) -> None:
    """Nothing, where the installed onnxruntime has the provider; InputError says what to install."""
    import onnxruntime

    there = onnxruntime.get_available_providers()
    if provider not in there:
        raise InputError(
            f"engine {engine} on device gpu needs {provider}, and the onnxruntime installed here has "
            f"{', '.join(there)}; run pip uninstall onnxruntime, then pip install onnxruntime-gpu"
        )
    load = getattr(onnxruntime, "preload_dlls", None)  # CUDA's libraries from their pip packages
    if load is not None:
        load()


def cuda_options(stream: int | None) -> dict[str, str]:
    """Options of the CUDA provider: full fp32 products, CUDA graphs, and the stream to work in."""
    options = {"device_id": "0", "enable_cuda_graph": "1", "use_tf32": "0"}
    return options if stream is None else {**options, "user_compute_stream": str(stream)}


def tensorrt_options(
    path: Path, opening: Opening, *, inputs: tuple[str, ...], most_tokens: int, int8: bool
) -> dict[str, str]:
    """Options of the TensorRT provider.

    Kernels are kept in a folder named by the file's digest: TensorRT's own names do not tell weights apart.
    """
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    cache = cache_folder() / "tensorrt" / digest[:32]
    cache.mkdir(parents=True, exist_ok=True)
    options = {
        "device_id": "0",
        "trt_cuda_graph_enable": "1",
        "trt_fp16_enable": str(int(opening.precision == "fp16")),
        "trt_bf16_enable": str(int(opening.precision == "bf16")),
        "trt_int8_enable": str(int(int8)),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        **_profile(inputs, most_tokens),
    }
    return options if opening.stream is None else {**options, "user_compute_stream": str(opening.stream)}


def _profile(inputs: tuple[str, ...], most_tokens: int) -> dict[str, str]:
    """The shapes that TensorRT makes kernels for: one row of one token to 32 of the longest, best at one of 32."""
    sizes = {"min": "1x1", "opt": f"1x{min(32, most_tokens)}", "max": f"{TENSORRT_ROWS}x{most_tokens}"}
    return {
        f"trt_profile_{which}_shapes": ",".join(f"{name}:{size}" for name in inputs) for which, size in sizes.items()
    }


def _open(path: Path, folder: Path, opening: Opening, *, name: str, providers: Providers) -> BoundEngine:
    """The session of `path`, with CUDA graphs where onnxruntime can capture this model."""
    graphs = True
    try:
        opened = session(path, threads=opening.threads, spinning=opening.spinning, providers=providers)
    except InputError as error:
        if "graph capture" not in str(error).lower() and "cuda graph" not in str(error).lower():
            raise
        graphs = False
        plain = tuple((each, _without_graphs(options)) for each, options in providers)
        opened = session(path, threads=opening.threads, spinning=opening.spinning, providers=plain)
    _require_started(opened, providers[0][0], path)
    manifest = read_manifest(folder)
    return BoundEngine(opened, name=name, classes=len(manifest.labels), most_tokens=manifest.max_tokens, graphs=graphs)


def _without_graphs(options: Mapping[str, str]) -> dict[str, str]:
    return {name: "0" if "cuda_graph" in name else value for name, value in options.items()}


def _require_started(opened: Any, provider: str, path: Path) -> None:
    """Nothing, where the provider runs; without its libraries or driver onnxruntime would go on, and say nothing."""
    started = opened.get_providers()
    if provider not in started:
        raise InputError(
            f"{provider} could not start for {path} (onnxruntime took {', '.join(started)}); its CUDA, cuDNN or "
            "TensorRT libraries or the driver are missing or of another version"
        )


def _operators(model: ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


def has_int8(model: ModelProto) -> bool:
    """True where the graph holds bytes to multiply."""
    return bool(_operators(model) & {*ROUNDED, "DequantizeLinear"})


def require_standard(model: ModelProto, path: Path) -> None:
    """Nothing, where all operators are ONNX's own; InputError names those that TensorRT would leave to CUDA."""
    fused = sorted({node.op_type for node in model.graph.node if node.domain not in ("", "ai.onnx")})
    if fused:
        raise InputError(f"{path} holds {', '.join(fused)}, which TensorRT does not read; {FOR_TENSORRT}")


def require_symmetric(model: ModelProto, path: Path) -> None:
    """Nothing, where all INT8 is s8 around zero; InputError names the first tensor where it is not."""
    from onnx import TensorProto, numpy_helper

    known = {one.name: one for one in model.graph.initializer}
    kinds = (TensorProto.INT8, TensorProto.INT32)  # a bias is s32
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if len(node.input) > 2:
            zero = known.get(node.input[2])
            even = zero is not None and zero.data_type in kinds and not numpy_helper.to_array(zero).any()
        else:  # zero, in u8 where values become integers, else in the integers' own type
            values = known.get(node.input[0])
            even = node.op_type == "DequantizeLinear" and (values is None or values.data_type in kinds)
        if not even:
            raise InputError(
                f"{path} quantizes {node.input[0]} otherwise than symmetric s8, "
                f"the one INT8 of TensorRT; {FOR_TENSORRT}"
            )
