"""What fusion and quantization achieved, counted against what the shapes allow: what is missing is slow, not wrong.

Places are told by their order: the n-th attention of a graph is that of the n-th layer that has heads. So they are
right for layers that share weights (ALBERT) and for graphs whose nodes were renamed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnx import GraphProto, ModelProto, NodeProto

from compressor.model.graph_file import INTEGER_PRODUCTS
from compressor.model.manifest import Shapes

COUNTED = ("EmbedLayerNormalization", "Attention", "SkipLayerNormalization", "BiasGelu")
"""Fused operators that an encoder of this family should show."""
WITHOUT_EMBEDDINGS = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Model types whose embeddings no operator fuses: they count positions from the padding token."""
EMBEDDINGS = ("EmbedLayerNormalization", "QEmbedLayerNormalization")
ATTENTIONS = ("Attention", "QAttention", "MultiHeadAttention")
NORMS = ("SkipLayerNormalization", "LayerNormalization")
GELUS = ("BiasGelu", "FastGelu", "Gelu", "Erf")
FLOAT = ("MatMul", "Gemm", "Attention")
"""Operators that multiply what they are given; in INT8 only where that is dequantized beside them."""


@dataclass(frozen=True)
class Audit:
    """Fused operators by name: how many there are, how many the shapes allow, and where one is missing."""

    found: Mapping[str, int]
    expected: Mapping[str, int]
    left: tuple[str, ...] = field(default=())
    """Places that fusion left in pieces, such as `attention of layer 3`."""

    @property
    def missing(self) -> dict[str, int]:
        """Operators that fusion left in pieces, with how many."""
        gaps = {name: self.expected[name] - self.found.get(name, 0) for name in self.expected}
        return {name: gap for name, gap in gaps.items() if gap > 0}

    def __str__(self) -> str:
        return ", ".join(f"{name} {self.found.get(name, 0)} of {self.expected[name]}" for name in self.expected)


@dataclass(frozen=True)
class IntegerAudit:
    """Products with weights in a quantized graph: how many run in INT8, and which stayed in float."""

    found: Mapping[str, int]
    """How products run, as product_kinds tells it, to how many."""
    products: int
    """All products with weights."""
    in_float: tuple[str, ...]
    """Those left in float, such as `layer 3 feed-forward out`."""
    embeddings: bool
    """Whether the word embeddings are INT8."""

    @property
    def integer(self) -> int:
        """How many products have weights of 8 bits or fewer; `found` tells which."""
        return self.products - len(self.in_float)

    def __str__(self) -> str:
        kinds = ", ".join(f"{name} {count}" for name, count in self.found.items())
        left = f"; in float: {', '.join(self.in_float)}" if self.in_float else ""
        words = "INT8" if self.embeddings else "float"
        return f"{self.integer} of {self.products} products in INT8 ({kinds}), embeddings in {words}{left}"


def expected_fusions(shapes: Shapes, *, embeddings: bool = True) -> dict[str, int]:
    """How many of each fused operator a model of these shapes can have.

    A layer without heads or without neurons has no such operator, and the skip connection of that half may stay in
    pieces, so it is not expected.

    Args:
        embeddings: whether the family's embeddings can be one operator (see WITHOUT_EMBEDDINGS).
    """
    attending = sum(layer.heads > 0 for layer in shapes.layers)
    feeding = sum(layer.ffn > 0 for layer in shapes.layers)
    first = int(embeddings and shapes.layers[0].heads > 0)  # embeddings fuse into the attention that reads them
    counts = (first, attending, attending + feeding, feeding)
    return dict(zip(COUNTED, counts, strict=True))


def audit(model: ModelProto, shapes: Shapes, *, model_type: str = "bert") -> Audit:
    """The fusions of a graph beside those expected, and the layers where one is missing.

    Args:
        model: any graph of an encoder; its nodes stand in the order they are run.
        model_type: as config.json names the family.
    """
    nodes = list(model.graph.node)
    embedded = any(node.op_type in EMBEDDINGS for node in nodes)
    gelus = [node for node in nodes if node.op_type in GELUS]
    family = model_type.removeprefix("pruned-")
    expected = expected_fusions(shapes, embeddings=family not in WITHOUT_EMBEDDINGS)
    if not gelus:
        expected["BiasGelu"] = 0  # another activation
    places = _places(shapes)
    norms = [node for node in nodes if node.op_type in NORMS][0 if embedded else 1 :]
    halves = list(zip((place for pair in places for place in pair), norms, strict=False))
    sites = {
        "Attention": list(zip(_real(places, 0), _attentions(nodes), strict=False)),
        "SkipLayerNormalization": [(f"skip connection after {name}", node) for (name, real), node in halves if real],
        "BiasGelu": list(zip((f"activation of {name}" for name in _real(places, 1)), gelus, strict=False)),
    }
    left = ["embeddings"] if expected["EmbedLayerNormalization"] and not embedded else []
    found = {"EmbedLayerNormalization": int(embedded)}
    for kind, pairs in sites.items():
        apart = [name for name, node in pairs if not _fused(node)]
        found[kind] = len(pairs) - len(apart)
        left += apart if expected[kind] else []
    return Audit(found=found, expected=expected, left=tuple(left))


def _places(shapes: Shapes) -> list[tuple[tuple[str, bool], tuple[str, bool]]]:
    """For each layer the names of its two halves, and whether they are there."""
    return [
        ((f"attention of layer {number}", layer.heads > 0), (f"feed-forward of layer {number}", layer.ffn > 0))
        for number, layer in enumerate(shapes.layers)
    ]


def _real(places: Sequence[tuple[tuple[str, bool], tuple[str, bool]]], half: int) -> list[str]:
    return [pair[half][0] for pair in places if pair[half][1]]


def _attentions(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    return [node for node in nodes if node.op_type in (*ATTENTIONS, "Softmax")]


def _fused(node: NodeProto) -> bool:
    """Whether a site is one operator: FastGelu only with the bias inside it."""
    return node.op_type not in ("Softmax", "LayerNormalization", "Gelu", "Erf") and not (
        node.op_type == "FastGelu" and len(node.input) < 2
    )


def audit_int8(model: ModelProto, shapes: Shapes) -> IntegerAudit:
    """The products of a quantized graph that run in INT8, and by name those that do not.

    A MatMul between two activations (scores, contexts) has no weights and is no product here.
    """
    kinds = product_kinds(model.graph)
    in_float = []
    attending = iter(_real(_places(shapes), 0))
    for node in model.graph.node:
        place = next(attending, "attention") if node.op_type in (*ATTENTIONS, "Softmax") else ""
        if kinds.get(node.output[0]) == "":
            in_float.append(place or product_name(node.name))
    found = Counter(kind for kind in kinds.values() if kind)
    return IntegerAudit(dict(found), len(kinds), tuple(in_float), _integer_embeddings(model.graph))


def product_kinds(graph: GraphProto) -> dict[str, str]:
    """The output of every product with weights, in the graph's order, to how it runs; "" is in float.

    That is the name of an operator that multiplies bytes, or such as `MatMul (QDQ)` where activations and weights are
    both dequantized beside it, of which onnxruntime makes one integer product when it opens the file. Weights of fewer
    than 8 bits are told: `MatMulNBits of 4 bits`.
    """
    makers = {name: node for node in graph.node for name in node.output}
    known = constants(graph)
    found = {}
    for node in graph.node:
        if node.op_type in INTEGER_PRODUCTS:
            found[node.output[0]] = node.op_type
        elif node.op_type == "MatMulNBits":
            bits = next((each.i for each in node.attribute if each.name == "bits"), 4)
            found[node.output[0]] = node.op_type if bits == 8 else f"{node.op_type} of {bits} bits"
        elif node.op_type in FLOAT and node.input[1] in known:
            pairs = all(_dequantized(name, makers) for name in node.input[:2])
            found[node.output[0]] = f"{node.op_type} (QDQ)" if pairs else ""
    return found


def constants(graph: GraphProto) -> set[str]:
    """Names of tensors that no input changes: initializers, Constant nodes, and what is computed of them alone."""
    known = {each.name for each in graph.initializer}
    for node in graph.node:  # in topological order
        if all(name in known for name in node.input if name) and (node.input or node.op_type == "Constant"):
            known.update(node.output)
    return known


def _dequantized(name: str, makers: Mapping[str, NodeProto]) -> bool:
    maker = makers.get(name)
    if maker is not None and maker.op_type == "Transpose":
        maker = makers.get(maker.input[0])
    return maker is not None and maker.op_type == "DequantizeLinear"


def _integer_embeddings(graph: GraphProto) -> bool:
    """Whether the largest table that rows are taken from holds 8-bit numbers."""
    if any(node.op_type == "QEmbedLayerNormalization" for node in graph.node):
        return True
    makers = {name: node for node in graph.node for name in node.output}
    stored = {each.name: each for each in graph.initializer}
    tables = []
    for node in graph.node:
        place = {"Gather": 0, "EmbedLayerNormalization": 2, "GatherBlockQuantized": 0}.get(node.op_type)
        name = node.input[place] if place is not None else ""
        maker = makers.get(name)
        if maker is not None and maker.op_type == "DequantizeLinear":
            name = maker.input[0]
        if name in stored and len(stored[name].dims) == 2:
            tables.append(stored[name])
    if not tables:
        return False
    largest = max(tables, key=lambda table: table.dims[0] * table.dims[1])
    return largest.data_type in (largest.INT8, largest.UINT8, largest.INT4, largest.UINT4)


PARTS = (
    (r"(query|q_lin|/q)(/|$)", "query"),
    (r"(/key|k_lin|/k)(/|$)", "key"),
    (r"(/value|v_lin|/v)(/|$)", "value"),
    (r"attention/(output/dense|out_lin|attn/o|dense)(/|$)", "attention output"),
    (r"(intermediate/dense|ffn/lin1|albert_layers\.\d+/ffn)(/|$)", "feed-forward in"),
    (r"(output/dense|ffn/lin2|ffn_output)(/|$)", "feed-forward out"),
)
"""How the tracer spells the projections of a layer, and what they are called here."""


def product_name(node_name: str) -> str:
    """The name of a traced projection in words; its last parts where it is none that is known.

    >>> product_name("/model/bert/encoder/layer.3/output/dense/MatMul_quant")
    'layer 3 feed-forward out'
    >>> product_name("/model/classifier/Gemm")
    'classifier'
    """
    scope = re.sub(r"/[A-Z][A-Za-z]*(_\w+)*$", "", node_name)
    layer = re.search(r"layer\.(\d+)/", scope)
    part = next((words for pattern, words in PARTS if re.search(pattern, scope)), None)
    if part is not None and (layer is not None or "albert_layers" in scope):
        return f"layer {layer.group(1)} {part}" if layer is not None else part
    for word in ("pooler", "pre_classifier", "classifier"):
        if f"/{word}" in scope:
            return word.replace("_", " ")
    return "/".join(scope.split("/")[-2:]) or "a product without a name"
