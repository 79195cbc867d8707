"""Distil, prune and quantize a fine-tuned BERT into a small, fast INT8 model, with a report that proves it.

Every public name is loaded when it is first used, so that `import compressor` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor.data import mix as mix
    from compressor.distill import match as match
    from compressor.distill.distiller import Distiller as Distiller
    from compressor.errors import CompressorError as CompressorError
    from compressor.export.exporter import Exporter as Exporter
    from compressor.model.settings import Student as Student
    from compressor.prune.pruner import Pruner as Pruner
    from compressor.quantize.quantizer import Quantizer as Quantizer
    from compressor.recipe.recipe import Recipe as Recipe
    from compressor.report.compare import compare as compare
    from compressor.report.measure import measure as measure
    from compressor.report.model import Report as Report
    from compressor.runner.run import run as run
    from compressor.runtime.predictor import load as load
    from compressor.settings import ramp as ramp
    from compressor.train.finetune import Finetuner as Finetuner

__version__ = "0.1.0"

_HOME = {
    "CompressorError": "compressor.errors",
    "Distiller": "compressor.distill.distiller",
    "Exporter": "compressor.export.exporter",
    "Finetuner": "compressor.train.finetune",
    "Pruner": "compressor.prune.pruner",
    "Quantizer": "compressor.quantize.quantizer",
    "Recipe": "compressor.recipe.recipe",
    "Report": "compressor.report.model",
    "Student": "compressor.model.settings",
    "compare": "compressor.report.compare",
    "load": "compressor.runtime.predictor",
    "match": "compressor.distill",
    "measure": "compressor.report.measure",
    "mix": "compressor.data",
    "ramp": "compressor.settings",
    "run": "compressor.runner.run",
}
"""Public name to the module that holds it; `match` and `mix` are modules themselves."""

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'compressor' has no attribute {name!r}")
    home = _HOME[name]
    value = importlib.import_module(f"{home}.{name}") if name in ("match", "mix") else None
    if value is None:
        value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
