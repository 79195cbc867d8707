"""Ways to write a model as INT8, by the names that a recipe uses."""

from __future__ import annotations

from collections.abc import Callable

from onnx import ModelProto

from compressor.quantize.dynamic import dynamic
from compressor.quantize.qat import qat
from compressor.quantize.settings import Scheme
from compressor.quantize.static import static
from compressor.quantize.weight_only import weight_only

SCHEMES: dict[Scheme, Callable[..., ModelProto]] = {
    "dynamic": dynamic,
    "static": static,
    "qat": qat,
    "weight_only": weight_only,
}
"""Name in the recipe to the function that does it: `(material, settings, *, float_nodes)` to a graph; all but `mixed`,
which takes one of these and compares (mixed.py)."""
