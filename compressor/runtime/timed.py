"""The process that is timed: `python -m compressor.runtime.timed FOLDER --engine E --threads N --rows FILE`.

It loads the model, tokenises the rows, says `{"ready": true, "start_seconds": s}`, then answers each line `{"round": r,
"rows": [indices], "warmup": n, "work": {"batch": 1, "length": "data", "end_to_end": false, "clock": "wall"}}` on its
standard input with `{"ns": [...]}`: nanoseconds of one call a row asked for, of the model's own run or, end to end,
from text to label. A batch is the row asked for and those after it. On a GPU a call takes the inputs there and lasts
until the device is done; clock `event` counts between the device's own marks before and behind it. `{"quit": true}`, or
the end of its input, ends it. With `--empty` it loads the engine and no model: what that weighs is not the model's.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from numpy.typing import NDArray

from compressor.bench.process import PLAIN, Work
from compressor.bench.timer import time_calls
from compressor.data.encoded import Encoded, collate
from compressor.device import Cpu, Device, open_device
from compressor.errors import InputError
from compressor.runtime.engine import Cast, EngineName, Opening
from compressor.runtime.predictor import Predictor, find_engine, open_predictor

if TYPE_CHECKING:
    from compressor.data.rows import Text

START = (sys.executable, "-P", "-m", "compressor.runtime.timed")


def timed_command(
    folder: Path, *, engine: EngineName, threads: int, rows: Path, device: str = "cpu", precision: Cast = "fp32"
) -> list[str]:
    """The command line that starts this process; `rows` is a file by `write_rows`, the rest as for `load`.

    `-P` keeps modules in the working directory, such as somebody's evaluate.py, from being taken for installed ones.
    """
    line = [*START, str(folder), "--engine", engine, "--threads", str(threads), "--rows", str(rows), "--device", device]
    return line if precision == "fp32" else [*line, "--precision", precision]


def empty_command(engine: EngineName) -> list[str]:
    """The command line of a process that loads the engine and no model."""
    return [*START, "--engine", engine, "--empty"]


def timed_environment(threads: int) -> dict[str, str]:
    """Variables of a timed process: its thread count, no network, and where this package lies."""
    home = str(Path(__file__).resolve().parents[2])
    known = os.environ.get("PYTHONPATH")
    return {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([home, known]) if known else home,
    }


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


class Calls:
    """The calls that a request asks for, whose inputs are made beforehand so that only the call is timed."""

    def __init__(self, predictor: Predictor, texts: Sequence[Text]) -> None:
        self._predictor = predictor
        self._texts = list(texts)
        self._encoded = predictor.encoder.encode(self._texts)

    def of(self, row: int, work: Work = PLAIN) -> Callable[[], object]:
        """One call on `row` and, in a batch, the rows after it (from the start again at the end)."""
        rows = [(row + step) % len(self._texts) for step in range(work.batch)]
        if work.end_to_end:
            texts, predict = [self._texts[place] for place in rows], self._predictor.predict
            return lambda: predict(texts)
        return self._predictor.runner.call(batch_of(self._encoded, rows, work.length, self._predictor.encoder.pad_id))


def batch_of(encoded: Encoded, rows: Sequence[int], length: str | int, pad_id: int) -> dict[str, NDArray[np.int64]]:
    """The rows as one batch: input_ids, attention_mask and token_type_ids, each (len(rows), tokens) int64.

    Args:
        encoded: all rows.
        rows: numbers of those in the batch.
        length: `data` pads to the longest of the batch, `padded` to the longest of all rows; a number makes every row
            so many tokens, by leaving out or repeating those between its first and last.
        pad_id: what fills up.
    """
    if isinstance(length, int):
        kept = [spread(int(encoded.lengths[row]), length) for row in rows]
        ids = [encoded.row(row)[places].tolist() for row, places in zip(rows, kept, strict=True)]
        types = [encoded.row_types(row)[places].tolist() for row, places in zip(rows, kept, strict=True)]
        return collate(Encoded.of(ids, types), range(len(rows)), pad_id)
    made = collate(encoded, rows, pad_id)
    missing = int(encoded.lengths.max(initial=0)) - made["input_ids"].shape[1] if length == "padded" else 0
    fill = {"input_ids": pad_id, "attention_mask": 0, "token_type_ids": 0}
    return {name: np.pad(array, ((0, 0), (0, missing)), constant_values=fill[name]) for name, array in made.items()}


def spread(tokens: int, wanted: int) -> NDArray[np.int64]:
    """Which of a row's `tokens` stand where in one of `wanted`: the first, those between over and over, the last.

    >>> spread(4, 6).tolist(), spread(6, 4).tolist()
    ([0, 1, 2, 1, 2, 3], [0, 1, 2, 5])
    """
    between = np.arange(1, tokens - 1) if tokens > 2 else np.zeros(1, dtype=np.int64)
    return np.concatenate([[0], np.resize(between, wanted - 2), [tokens - 1]]).astype(np.int64)


def answer(
    request: dict[str, Any], call_of: Callable[[int, Work], Callable[[], object]], device: Device | None = None
) -> dict[str, list[int]]:
    """Nanoseconds of each row asked for, after `warmup` untimed runs of the first ones.

    `device` is where the calls compute; None means on the processor, where a call that returned is done.
    """
    work = Work(**request.get("work", {}))
    rows, warmup = request["rows"], int(request.get("warmup", 0))
    made = {row: call_of(row, work) for row in dict.fromkeys(rows)}
    if work.clock == "event":
        return {"ns": event_times(made, rows, warmup=warmup, device=device or Cpu())}
    if device is None:
        return {"ns": time_calls(lambda row: made[row](), rows, warmup=warmup)}

    def finished(row: int) -> None:
        made[row]()
        device.synchronise()

    return {"ns": time_calls(finished, rows, warmup=warmup)}


def event_times(
    calls: Mapping[int, Callable[[], object]], rows: Sequence[int], *, warmup: int, device: Device
) -> list[int]:
    """Nanoseconds of each call between two marks of the device: what it was busy or waited for, but not Python."""
    for place in range(warmup if rows else 0):
        calls[rows[place % len(rows)]]()
    device.synchronise()
    taken = []
    for row in rows:
        start = device.event()
        calls[row]()
        taken.append(device.nanoseconds(start, device.event()))
    return taken


def _seconds_alive() -> float:
    import psutil

    return max(0.0, time.time() - float(psutil.Process().create_time()))


def serve(arguments: Sequence[str], requests: TextIO, replies: TextIO) -> None:
    """Load, then answer requests until told to quit."""
    parser = argparse.ArgumentParser(prog="compressor.runtime.timed", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--empty", action="store_true")
    given = parser.parse_args(arguments)
    device = None if given.device == "cpu" else open_device(given.device)
    with (device or Cpu()).queue() as stream:
        call_of = _nothing(given.engine) if given.empty else _open(given, stream)
        gc.collect()
        gc.disable()
        _say(replies, {"ready": True, "start_seconds": _seconds_alive()})
        for line in requests:
            request = json.loads(line)
            if request.get("quit"):
                return
            _say(replies, answer(request, call_of, device))


def _open(given: argparse.Namespace, stream: int | None) -> Callable[[int, Work], Callable[[], object]]:
    """The calls of the model in the folder given."""
    opening = Opening(threads=given.threads, device=given.device, precision=given.precision, stream=stream)
    predictor = open_predictor(given.folder, find_engine(given.folder, given.engine), opening)
    return Calls(predictor, read_rows(given.rows)).of


LIBRARIES = {"torch": "compressor.runtime.torch", "openvino": "openvino"}
"""What an engine loads where it is another than onnxruntime."""


def _nothing(engine: str) -> Callable[[int, Work], Callable[[], object]]:
    """No calls, once the libraries that the engine's models need are imported."""
    importlib.import_module("tokenizers")
    importlib.import_module(LIBRARIES.get(engine, "onnxruntime"))
    return lambda row, work: lambda: None


def _say(replies: TextIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def _main() -> None:
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as replies:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library writes must not reach the protocol
        serve(sys.argv[1:], sys.stdin, replies)


if __name__ == "__main__":
    _main()
