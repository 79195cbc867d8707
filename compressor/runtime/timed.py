"""The process that is timed: `python -m compressor.runtime.timed FOLDER --engine E --threads N --rows FILE`.

It loads the model, tokenises the rows, says `{"ready": true, "start_seconds": s}`, then answers each line
`{"round": r, "rows": [indices], "warmup": n}` on its standard input with `{"ns": [...]}`: nanoseconds of the model's
own run, batch 1, each row at its own length. `{"quit": true}`, or the end of its input, ends it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from compressor.bench.timer import time_calls
from compressor.data.encode import collate
from compressor.errors import InputError
from compressor.runtime.onnx import OnnxEngine
from compressor.runtime.predictor import EngineName, Predictor, load

if TYPE_CHECKING:
    from compressor.data.rows import Text


def timed_command(folder: Path, *, engine: EngineName, threads: int, rows: Path) -> list[str]:
    """The command line that starts this process; `rows` is a file by `write_rows`.

    `-P` keeps modules in the working directory, such as somebody's evaluate.py, from being taken for installed ones.
    """
    start = [sys.executable, "-P", "-m", "compressor.runtime.timed", str(folder)]
    return [*start, "--engine", engine, "--threads", str(threads), "--rows", str(rows)]


def write_rows(path: Path, texts: Iterable[Text]) -> Path:
    """The path, with one JSON a line: a text, or a list of the two texts of a pair."""
    path.write_text("".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[Text]:
    """The rows of a file by `write_rows`; InputError names a line that is neither text nor pair."""
    rows: list[Text] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):
        row = json.loads(line)
        if isinstance(row, str):
            rows.append(row)
        elif isinstance(row, list) and len(row) == 2 and all(isinstance(part, str) for part in row):
            rows.append((row[0], row[1]))
        else:
            raise InputError(f"{path}:{number} must be a text or a list of two texts (got {line[:80]})")
    return rows


def calls(predictor: Predictor, texts: Sequence[Text]) -> list[Callable[[], object]]:
    """One call a row that runs the model on it and nothing else: inputs are made beforehand."""
    encoded = predictor.encoder.encode(list(texts))
    inputs = [collate(encoded, [index], predictor.encoder.pad_id) for index in range(len(texts))]
    runner = predictor.runner
    if isinstance(runner, OnnxEngine):
        return [_onnx_call(runner.session.run, runner.feed(row)) for row in inputs]
    return [_torch_call(runner.model, runner.feed(row)) for row in inputs]


def _onnx_call(run: Callable[..., object], feed: object) -> Callable[[], object]:
    return lambda: run(None, feed)


def _torch_call(model: Callable[..., Any], feed: dict[str, Any]) -> Callable[[], object]:
    import torch

    def call() -> object:
        with torch.inference_mode():
            return model(**feed).logits

    return call


def answer(request: dict[str, Any], run: Sequence[Callable[[], object]]) -> dict[str, list[int]]:
    """Nanoseconds of each row asked for, after `warmup` untimed runs of the first ones."""
    return {"ns": time_calls(lambda row: run[row](), request["rows"], warmup=int(request.get("warmup", 0)))}


def _seconds_alive() -> float:
    import psutil

    return max(0.0, time.time() - float(psutil.Process().create_time()))


def serve(arguments: Sequence[str], requests: TextIO, replies: TextIO) -> None:
    """Load, then answer requests until told to quit."""
    parser = argparse.ArgumentParser(prog="compressor.runtime.timed", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    given = parser.parse_args(arguments)
    run = calls(load(given.folder, engine=given.engine, threads=given.threads), read_rows(given.rows))
    gc.collect()
    gc.disable()
    _say(replies, {"ready": True, "start_seconds": _seconds_alive()})
    for line in requests:
        request = json.loads(line)
        if request.get("quit"):
            return
        _say(replies, answer(request, run))


def _say(replies: TextIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def _main() -> None:
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as replies:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library writes must not reach the protocol
        serve(sys.argv[1:], sys.stdin, replies)


if __name__ == "__main__":
    _main()
