"""ONNX files, wherever they come from: where a folder keeps its graph, and opening one without trusting it."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import InputError
from compressor.model.manifest import MANIFEST_NAME, Precision, read_manifest

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto

MODEL_FILE = "model.onnx"
"""The graph of a flat folder."""
HUB_FILES = {
    "fp32": "onnx/model.onnx",
    "fp16": "onnx/model_fp16.onnx",
    "bf16": "onnx/model_bf16.onnx",
    "int8": "onnx/model_quantized.onnx",
}
"""Precision to where a folder of layout `hub` keeps its graph, as optimum and transformers.js look for it."""
FEEDS = ("input_ids", "attention_mask", "token_type_ids")
"""What a graph may be fed: what a tokenizer gives."""
LARGEST_FILE = 2**31 - 1
"""Bytes of one ONNX file at most, which protobuf itself sets; larger models keep their weights in files beside it."""
LARGEST_WEIGHTS = 2**35
"""Bytes of all weights in files beside the graph at most (32 GiB): no encoder comes near."""
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"})
"""Whose operators onnxruntime brings along; any other needs code that comes with the file, which is never loaded."""
INTEGER_PRODUCTS = frozenset(
    {"DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QAttention", "QGemm", "QLinearMatMul"}
)
"""Operators that multiply bytes."""
SCALED_BY_BATCH = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul"})
"""Operators that scale activations by what is in the batch."""
ROUNDED = INTEGER_PRODUCTS | SCALED_BY_BATCH | {"QuantizeLinear", "QEmbedLayerNormalization"}
"""Operators that round activations or multiply bytes."""
FEW_BITS = ROUNDED | {"DequantizeLinear", "GatherBlockQuantized", "MatMulNBits"}
"""Operators that only a graph with weights of few bits has."""
FLOATS: dict[int, Precision] = {1: "fp32", 10: "fp16", 16: "bf16"}
"""Number of a type of weights in ONNX to its name."""


def model_file(folder: Path) -> Path | None:
    """The ONNX file of a model folder, flat or in layout `hub`; None where it has none.

    In layout `hub`, where several may lie side by side, it is the one of the precision that the manifest names.
    """
    flat = folder / MODEL_FILE
    if flat.is_file():
        return flat
    if not (folder / "onnx").is_dir() or not (folder / "config.json").is_file():
        return None
    named = folder / HUB_FILES[read_manifest(folder).precision]
    return named if named.is_file() else None


def precision_of(graph: GraphProto) -> Precision:
    """int8 where a graph has operators for weights of few bits, fp16 or bf16 where most weights are, else fp32."""
    if any(node.op_type in FEW_BITS for node in graph.node):
        return "int8"
    sizes: dict[Precision, int] = dict.fromkeys(FLOATS.values(), 0)
    for one in graph.initializer:
        if one.data_type in FLOATS:
            sizes[FLOATS[one.data_type]] += math.prod(one.dims)
    return max(sizes, key=lambda name: sizes[name])


def name_nodes(graph: GraphProto) -> None:
    """Give every node that has no name, or one that an earlier node has, a name of its own.

    Exporters may leave names out, but what is quantized and what stays in float is said by name.
    """
    taken, seen = {node.name for node in graph.node}, {""}
    for node in graph.node:
        if node.name in seen:
            node.name = next(name for number in count() if (name := f"{node.op_type}_{number}") not in taken)
            taken.add(node.name)
        seen.add(node.name)


def folder_precision(folder: Path) -> Precision:
    """In what a model folder keeps its weights: as compressor.json says; without one what its graph shows.

    Raises: InputError for a folder or a graph that cannot be read.
    """
    file = model_file(folder)
    if file is None or (folder / MANIFEST_NAME).is_file():
        return read_manifest(folder).precision
    return precision_of(open_graph(file, weights=False).graph)


def scaled_by_batch(folder: Path) -> bool:
    """Whether a folder's answers depend on what else is in the batch: as compressor.json says, else as its graph shows.

    Raises: InputError for a folder or a graph that cannot be read.
    """
    file = model_file(folder)
    if file is None or (folder / MANIFEST_NAME).is_file():
        return read_manifest(folder).asked_alone
    return any(node.op_type in SCALED_BY_BATCH for node in open_graph(file, weights=False).graph.node)


def open_graph(file: Path, *, weights: bool = True) -> ModelProto:
    """The graph in `file`, checked before anything in it is followed.

    Args:
        weights: also reads weights that lie in files beside it; False leaves them where they are.
    Raises: InputError for a file that is missing, too large, truncated or no ONNX; that names weights outside its
        folder, through a link, or that are not there; or whose operators onnxruntime does not bring along.
    """
    model = _parse(file)
    _check_operators(model, file)
    stored = [tensor for tensor in _tensors(model.graph) if tensor.data_location == tensor.EXTERNAL]
    _check_stored(stored, file)
    if weights and stored:
        _load_stored(model, file)
    return model


def has_stored_weights(file: Path) -> bool:
    """Whether weights of the graph lie in other files; raises as open_graph does."""
    return any(each.data_location == each.EXTERNAL for each in _tensors(open_graph(file, weights=False).graph))


def require_classifier(feeds: Collection[str], answers: Collection[str], *, where: str) -> None:
    """Nothing, for the names of a graph's inputs and outputs that are a text classifier's; InputError otherwise."""
    odd = [name for name in feeds if name not in FEEDS]
    if odd:
        raise InputError(f"{where}: the graph takes {', '.join(odd)}, unknown here; export a text classifier")
    if "input_ids" not in feeds:
        raise InputError(
            f"{where}: the graph takes {', '.join(feeds) or 'nothing'} and no input_ids; export a text classifier"
        )
    if "logits" not in answers:
        raise InputError(
            f"{where}: the graph gives {', '.join(answers) or 'nothing'} and no logits; export it for "
            "text-classification"
        )


def require_bert(model: ModelProto, *, where: str) -> None:
    """Nothing, for a graph that is fed tokens, looks words up and attends; InputError for any other model."""
    graph = model.graph
    constants = {each.name for each in graph.initializer}
    feeds = [each.name for each in graph.input if each.name not in constants]
    require_classifier(feeds, [each.name for each in graph.output], where=where)
    kinds = {node.op_type for node in graph.node}
    attends = kinds & {"Softmax", "Attention", "QAttention", "MultiHeadAttention", "PackedAttention"}
    looks_up = any("Gather" in kind or "EmbedLayerNormalization" in kind for kind in kinds)
    if not attends or not looks_up:
        missing = "attention" if looks_up else "word embeddings"
        raise InputError(f"{where}: the graph has no {missing}, so it is no BERT; export a BERT text classifier")


def _parse(file: Path) -> ModelProto:
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    if not file.is_file():
        raise InputError(f"{file} is not there or is no file; give the folder of an exported model")
    size = file.stat().st_size
    if size > LARGEST_FILE:
        raise InputError(
            f"{file} has {size / 1e9:.1f} GB, more than the {LARGEST_FILE / 1e9:.1f} GB that ONNX allows a file; save "
            "it with its weights in a file beside it"
        )
    model: ModelProto = ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except (DecodeError, RecursionError) as error:
        raise InputError(f"{file} is truncated or no ONNX file ({error}); copy it again or export it again") from error
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise InputError(f"{file} is truncated or no ONNX file (no whole graph in it); copy it or export it again")
    return model


def _check_operators(model: ModelProto, file: Path) -> None:
    """InputError for operators that onnxruntime does not bring along and the file does not define itself."""
    from onnx import defs

    defined = {(each.domain, each.name) for each in model.functions}
    foreign = set()
    for node in _nodes(model.graph):
        known = node.domain in DOMAINS and (node.domain not in ("", "ai.onnx") or defs.has(node.op_type))
        if not known and (node.domain, node.op_type) not in defined:
            foreign.add(f"{node.domain}.{node.op_type}".removeprefix("."))
    if foreign:
        raise InputError(
            f"{file} uses {', '.join(sorted(foreign)[:3])}, which onnxruntime does not bring along (custom operators "
            "are never loaded); export the model with standard operators"
        )


def _check_stored(stored: Sequence[TensorProto], file: Path) -> None:
    """InputError unless all weights in other files lie whole in regular files beside the graph."""
    folder, total = file.parent.resolve(), 0
    for tensor in stored:
        said = {entry.key: entry.value for entry in tensor.external_data}
        place = _inside(folder, said.get("location", ""), tensor.name, file)
        start, length = _span(said, tensor, file)
        if start + length > place.stat().st_size:
            raise InputError(
                f"{file}: the weights {tensor.name} end at byte {start + length} of {place.name}, which has "
                f"{place.stat().st_size}; copy both files again"
            )
        total += length
    if total > LARGEST_WEIGHTS:
        raise InputError(f"{file} names {total / 1e9:.0f} GB of weights, more than {LARGEST_WEIGHTS / 1e9:.0f} GB")


def _inside(folder: Path, location: str, name: str, file: Path) -> Path:
    """The file that `location` names, which must be a regular one below `folder` reached through no link."""
    given = Path(location)
    outside = not location or given.is_absolute() or "\\" in location or "\0" in location or ".." in given.parts
    place = folder / given
    if outside or not Path(os.path.realpath(place)).is_relative_to(folder):
        raise InputError(
            f"{file}: the weights {name} are said to lie in {location!r}, outside the model's folder, which is never "
            "read; export the model again"
        )
    if any(part.is_symlink() for part in (place, *place.parents) if part.is_relative_to(folder) and part != folder):
        raise InputError(f"{file}: the weights {name} lie behind the link {location!r}; put the file itself there")
    if not place.is_file():
        raise InputError(f"{file}: the weights {name} lie in {location!r}, which is not there; copy it beside the file")
    return place


def _span(said: Mapping[str, str], tensor: TensorProto, file: Path) -> tuple[int, int]:
    """First byte and number of bytes of a tensor in its file; InputError where they are none or not its size."""
    from onnx import helper

    try:
        needed = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        start, length = int(said.get("offset", 0)), int(said.get("length", needed))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: where the weights {tensor.name} lie cannot be read ({error})") from error
    packed = needed // 8 <= length <= needed  # four-bit types take less than numpy's
    if start < 0 or any(dim < 0 for dim in tensor.dims) or not packed:
        raise InputError(
            f"{file}: the weights {tensor.name} of shape {list(tensor.dims)} take {needed} bytes, the file says "
            f"{length} from byte {start}; export the model again"
        )
    return start, length


def _load_stored(model: ModelProto, file: Path) -> None:
    from onnx.checker import ValidationError
    from onnx.external_data_helper import load_external_data_for_model

    try:
        load_external_data_for_model(model, str(file.parent))
    except (OSError, ValueError, ValidationError) as error:
        raise InputError(f"{file}: its weights cannot be read ({error}); copy or export the model again") from error


def _nodes(graph: GraphProto) -> Iterator[Any]:
    """All nodes, those inside branches and loops too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes(inner)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """All constants: initializers, sparse ones and those in nodes, inside branches and loops too."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors(inner)
