"""The process in which an OpenVINO model is timed, or answers rows; runs in the environment of nncf.txt alone.

    python openvino_timed.py MODEL --rows TOKENS --threads N [--logits FILE]

TOKENS holds rows as token ids (jsonl). Speaks the protocol of compressor/bench/process.py on its standard input and
output; with --logits it writes the answers to all rows, each asked alone, as an .npy file instead. Every setting that
changes speed or arithmetic is explicit: threads, one stream, the latency hint, and fp32 where a product is not INT8.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino.properties as properties
from openvino.properties import hint


def compiled(model: Path, threads: int) -> Any:
    """The model, ready to run on the processor."""
    settings = {
        properties.inference_num_threads: threads,
        properties.num_streams: 1,
        hint.performance_mode: hint.PerformanceMode.LATENCY,
        hint.inference_precision: openvino.Type.f32,
    }
    return openvino.Core().compile_model(model, "CPU", settings)


def answer(request: Any, feeds: list[dict[str, np.ndarray]], asked: dict[str, Any]) -> list[int]:
    """Nanoseconds of each row asked for, after the untimed runs of the first ones."""
    work = asked.get("work", {})
    if work.get("batch", 1) != 1 or work.get("length", "data") != "data" or work.get("end_to_end"):
        raise SystemExit(f"only single rows at their own length can be timed here (got {work})")
    rows, taken = asked["rows"], []
    for place in range(int(asked.get("warmup", 0)) if rows else 0):
        request.infer(feeds[rows[place % len(rows)]], share_outputs=True)
    for row in rows:
        feed = feeds[row]
        start = time.perf_counter_ns()
        request.infer(feed, share_outputs=True)
        taken.append(time.perf_counter_ns() - start)
    return taken


def serve(request: Any, feeds: list[dict[str, np.ndarray]], started: float) -> None:
    """Answers until told to quit; whatever a library prints must not reach the protocol."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as replies:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        gc.collect()
        gc.disable()
        message: dict[str, Any] = {"ready": True, "start_seconds": time.perf_counter() - started}
        while True:
            replies.write(json.dumps(message) + "\n")
            replies.flush()
            line = sys.stdin.readline()
            asked = json.loads(line) if line else {"quit": True}
            if asked.get("quit"):
                return
            message = {"ns": answer(request, feeds, asked)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--logits", type=Path)
    given = parser.parse_args()
    started = time.perf_counter()
    model = compiled(given.model, given.threads)
    names = {name for one in model.inputs for name in one.names}
    rows = [json.loads(line) for line in given.rows.read_text(encoding="utf-8").splitlines()]
    feeds = [{name: np.array([row[name]], dtype=np.int64) for name in row if name in names} for row in rows]
    request = model.create_infer_request()
    if given.logits is None:
        serve(request, feeds, started)
        return
    np.save(given.logits, np.concatenate([np.array(next(iter(request.infer(feed).values()))) for feed in feeds]))


if __name__ == "__main__":
    main()
