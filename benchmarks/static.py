"""Static INT8 with all defaults on the fp32 model of every recipe in recipes/: what it loses, what it falls back to.

    python benchmarks/static.py [--work DIR] [--run NAME=DIR]

Each recipe is run (what stands in DIR already is not made again), then `Quantizer(model, data=..., try_=["static"])`
is applied to what its quantize stage starts from, or to its last model where it has none. Scores are those of the
recipe's test rows, each asked alone; drops are paired. One line a recipe in benchmarks/results/static.json; the scheme
that stands there is what was kept, and `told` is what Quantizer said of it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from movies import ROOT, gain, use_threads

from compressor.data.rows import DataSets, read_data
from compressor.device import cpu_name, has_vnni
from compressor.quantize.quantizer import Quantizer
from compressor.recipe.recipe import Recipe
from compressor.runner.run import run
from compressor.runtime.predictor import load
from compressor.stage import Decision

RESULT = ROOT / "benchmarks" / "results" / "static.json"
ALLOWED_PP = 1.0


def source_of(recipe: Recipe, out: Path) -> Path:
    """The torch folder that the quantize stage reads, of the last stage that has one where there is none."""
    names = ["teacher", *(stage.id for stage in recipe.stages)]
    cut = next((place for place, stage in enumerate(recipe.stages) if stage.verb == "quantize"), len(recipe.stages))
    for name in reversed(names[: cut + 1]):
        if any((out / "stages" / name / "model").glob("*.safetensors")):
            return out / "stages" / name / "model"
    raise SystemExit(f"{out} holds no trained model")


def right(folder: Path, data: DataSets) -> np.ndarray:
    """Which test rows a model folder answers right, 0 or 1."""
    assert data.test is not None
    model = load(folder, threads=use_threads())
    answers = np.concatenate([model.logits([text]) for text in data.test.texts]).argmax(1)
    return (answers == np.array(data.test.labels)).astype(float)


def measured(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Score in fp32 and after Quantizer, what was kept and why."""
    data, told = read_data(recipe.data, recipe.task, base=recipe.base, teacher_labels=None), list[Decision]()
    source = source_of(recipe, out)
    with tempfile.TemporaryDirectory() as place:
        made = Quantizer(source, data=data, try_=["static"], decide=told.append).fit(Path(place) / "int8")
        before, after = right(source, data), right(made, data)
    loss, low, high = gain(after, before)
    kept = next(one for one in reversed(told) if one.kind == "quantize")
    return {
        "model": f"stages/{source.parent.name}",
        "rows": len(before),
        "fp32": before.mean(),
        "int8": after.mean(),
        "lost_pp": [loss, low, high],
        "kept": kept.chosen,
        "told": [f"{one.chosen}: {one.because}" for one in told],
        "within": bool(loss <= ALLOWED_PP),
    }


def main() -> None:
    """Measure each recipe and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/static"))
    parser.add_argument("--run", action="append", default=[], metavar="NAME=DIR", help="a finished run of a recipe")
    given = parser.parse_args()
    ready = dict(each.split("=", 1) for each in given.run)
    found: dict[str, Any] = {"machine": cpu_name(), "vnni": has_vnni(), "allowed_pp": ALLOWED_PP, "recipes": {}}
    for file in sorted((ROOT / "recipes").glob("*.yaml")):
        recipe = Recipe.load(file)
        out = Path(ready[recipe.name]) if recipe.name in ready else given.work / recipe.name
        if recipe.name not in ready:
            run(recipe, out)
        found["recipes"][recipe.name] = measured(recipe, out)
        print(recipe.name, json.dumps(found["recipes"][recipe.name], indent=1), flush=True)
    RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
