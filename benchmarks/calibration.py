"""Static INT8's calibration: memory at 100 and at 10,000 rows, and how close each way to take ranges is to fp32.

    python benchmarks/calibration.py --model runs/teacher-movies/stages/teacher/onnx [--rows 100 10000] [--only memory]

`--model` is a folder with the fused fp32 model.onnx of a classifier of the movie snippets. Memory is the peak of a
process of its own for each number of rows, drawn from all there are. Answers are compared on the 1,000 rows of
`select`, with weights for processors whose sums saturate (reduce_range) as this one sums, and for the default method
without, in sums that do not saturate. One thread.
Prints a line a measurement and writes benchmarks/results/calibration.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
from movies import gain, movies

from compressor.data.encode import collate, open_encoder
from compressor.data.rows import DataSets, Rows
from compressor.device import cpu_name
from compressor.quantize.calibration import summaries
from compressor.quantize.embeddings import integer_embeddings
from compressor.quantize.material import Material, calibration_texts
from compressor.quantize.products import quantizable
from compressor.quantize.ranges import range_of
from compressor.quantize.settings import Calibrate, RangeMethod, Smooth
from compressor.quantize.smoothing import smoothed
from compressor.quantize.static import integer_graph, static
from compressor.runtime.onnx import Inputs, OnnxEngine

RESULT = Path(__file__).resolve().parent / "results" / "calibration.json"
ALLOWED_MB = 500


def material(folder: Path, data: DataSets, settings: Calibrate, *, alpha: float | None) -> Material:
    """What Quantizer would hand to the scheme."""
    encoder = open_encoder(folder, data.max_tokens)
    encoded = encoder.encode(calibration_texts(data, settings, seed=17))

    def batches() -> Iterator[Inputs]:
        return (collate(encoded, [row], encoder.pad_id) for row in range(len(encoded)))

    return Material(
        folder=folder,
        torch_folder=None,
        raw=lambda: (_ for _ in ()).throw(AssertionError("static for a CPU needs no traced graph")),
        batches=batches,
        reduce_range=True,
        seed=17,
        work=Path(tempfile.mkdtemp(prefix="calibration-")),
        smooth=None if alpha is None else Smooth(alpha=alpha),
    )


def peak_bytes(folder: Path, rows: int) -> dict[str, int]:
    """Peak memory of this process after static INT8 with so many calibration rows, and how many there were."""
    data = movies()
    assert data.test is not None
    others = (*data.unlabelled.texts, *data.select.texts, *data.test.texts)  # nothing is judged here: only memory
    data = replace(data, unlabelled=Rows(others, (None,) * len(others)))
    settings = Calibrate.model_validate({"from": "both", "rows": rows})
    given = material(folder, data, settings, alpha=None)
    static(given, settings)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
    return {"rows": sum(1 for _ in given.batches()), "peak_bytes": peak}


def memory(folder: Path, sizes: list[int]) -> list[dict[str, int]]:
    """A fresh process for each number of rows."""
    found = []
    for rows in sizes:
        command = [sys.executable, __file__, "--model", str(folder), "--measure", str(rows)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(found[-1], flush=True)
    return found


def answers(graph: bytes, folder: Path, data: DataSets, *, precise: bool) -> np.ndarray:
    """Logits of the rows of `select`, one row at a time."""
    encoder = open_encoder(folder, data.max_tokens)
    encoded = encoder.encode(data.select.texts)
    engine = OnnxEngine(graph, threads=1, spinning=False, precise=precise)
    return np.concatenate([engine.logits(collate(encoded, [row], encoder.pad_id)) for row in range(len(encoded))])


def accuracy(folder: Path) -> list[dict[str, Any]]:
    """Each method, smoothed by default and with channels left alone, beside fp32; rows pass once for all methods."""
    data = movies()
    labels = np.array(data.select.labels)
    graph = onnx.load(str(folder / "model.onnx"))
    fp32 = answers(graph.SerializeToString(), folder, data, precise=False)
    right = (fp32.argmax(axis=1) == labels).astype(float)
    found: list[dict[str, Any]] = [{"form": "fp32", "accuracy": float(right.mean())}]
    nodes = [node.name for node in quantizable(graph)]
    for alpha in (None, 0.0):
        given = material(folder, data, Calibrate(), alpha=alpha)
        ready = smoothed(given, given.smooth)
        tensors = {node.input[0] for node in quantizable(ready)}
        seen = summaries(ready, tensors, given.batches())
        for method in get_args(RangeMethod):
            ranges = {name: range_of(each, Calibrate(method=method)) for name, each in seen.items()}
            for reduce_range in (True, False) if method == Calibrate().method else (True,):
                made = integer_graph(ready, nodes, ranges, reduce_range=reduce_range)
                integer_embeddings(made)
                content = made.SerializeToString()
                logits = answers(content, folder, data, precise=not reduce_range)
                kept = (logits.argmax(axis=1) == labels).astype(float)
                what = {"form": "static", "method": method, "alpha": alpha, "reduce_range": reduce_range}
                found.append({**what, **compared(right, kept, fp32, logits), "bytes": len(content)})
                print(found[-1], flush=True)
    return found


def compared(right: np.ndarray, kept: np.ndarray, fp32: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
    """Figures of one file beside fp32, over the same rows."""
    rise, low, high = gain(right, kept)
    return {
        "accuracy": float(kept.mean()),
        "gain_pp": {"value": rise, "low": low, "high": high},
        "agreement": float((logits.argmax(axis=1) == fp32.argmax(axis=1)).mean()),
        "mean_logit_difference": float(np.abs(logits - fp32).mean()),
        "largest_logit_difference": float(np.abs(logits - fp32).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs=2, default=[100, 10_000])
    parser.add_argument("--only", choices=["memory", "accuracy"])
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure is not None:
        print(json.dumps(peak_bytes(given.model, given.measure)))
        return
    result: dict[str, Any] = {
        "command": "python benchmarks/calibration.py --model FOLDER",
        "machine": {"processor": cpu_name(), "python": platform.python_version()},
    }
    if given.only != "accuracy":
        small, large = memory(given.model, sorted(given.rows))
        grown = (large["peak_bytes"] - small["peak_bytes"]) / 1e6
        result["memory"] = {"samples": [small, large], "grown_MB": grown, "allowed_MB": ALLOWED_MB}
        print(f"peak memory grows by {grown:.0f} MB (at most {ALLOWED_MB})")
    if given.only != "memory":
        result["select"] = accuracy(given.model)
    result["load_average_after"] = os.getloadavg()
    before = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({**before, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
