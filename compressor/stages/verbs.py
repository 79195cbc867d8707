"""The verbs of the recipe language."""

from __future__ import annotations

from compressor.stage import Stage
from compressor.stages.distill import Distill
from compressor.stages.export import Export
from compressor.stages.finetune import FinetuneStage
from compressor.stages.prune import Prune
from compressor.stages.quantize import Quantize

VERBS: dict[str, type[Stage]] = {
    "finetune": FinetuneStage,
    "distill": Distill,
    "prune": Prune,
    "quantize": Quantize,
    "export": Export,
}

ONNX_ONLY = ("quantize", "export")
"""Verbs whose output holds no torch weights."""
