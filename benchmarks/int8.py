"""INT8 of this project beside optimum-onnx, Olive and NNCF with OpenVINO, from the same checkpoints.

    python benchmarks/int8.py environments
    python benchmarks/int8.py files [--data movies|r52|amazon] [--layers 6 3 2] [--ready LAYERS=FOLDER] [--redo SUBJECT]
    python benchmarks/int8.py time  [--data movies|r52|amazon] [--layers 6 3 2] [--rounds 40] [--threads 2]
    python benchmarks/int8.py folds [--data movies] [--layers 6] [--fold 0 1 2 3 4]
    python benchmarks/int8.py table

All take --work DIR, where environments, checkpoints and models are kept. `environments` installs each peer with pip
into an environment of its own (2 GB each). `files` trains what is missing (MiniLM of 6 layers fine-tuned, students of 3
and 2), lets each tool write its INT8 and scores all on the test rows, each row asked alone: drops are paired with fp32,
agreement is the share of rows decided as fp32 does; on a processor without VNNI also as one with it answers. `time`
times all files of a model in one run: a pinned process each, batch 1, own lengths, rounds in a balanced order, fp32
twice as the noise floor. `folds` trains on four fifths and scores the fifth left out, five times.

Lines are appended to benchmarks/results/int8.jsonl as they are found, so that a stopped command goes on; of lines about
the same thing the last counts. `table` writes int8.md from them.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import int8_subjects
import numpy as np
from int8_data import DATA, FOLDS, held_out
from int8_models import LAYERS, TEACHER_LAYERS, checkpoint, place_of
from int8_subjects import FP32, OURS_VNNI, PEERS, SUBJECTS, Subject, answers, model_bytes, model_file, tokens_file
from int8_table import table
from movies import ROOT, Log, use_threads

from compressor.bench.isolation import Command, time_in_turn
from compressor.bench.machine import fingerprint, quality
from compressor.bench.statistics import median_interval, p50_by_round, ratio_interval
from compressor.data.encode import open_encoder
from compressor.data.rows import DataSets
from compressor.device import has_vnni
from compressor.report.subjects import draw_texts
from compressor.runtime.timed import timed_command, timed_environment, write_rows

RESULTS = ROOT / "benchmarks" / "results" / "int8.jsonl"
AGAIN = "fp32/aa"
TIMED_ROWS = 256


def rows_of(work: Path, data: str) -> DataSets:
    """The rows of a data set."""
    return DATA[data](work / data / "rows")


def score(log: Log, rows: DataSets, *, work: Path, key: dict[str, Any], place: Path) -> None:
    """A line for each subject: bytes, score, agreement with fp32 and which test rows are right."""
    assert rows.test is not None
    encoded = open_encoder(place / "checkpoint", rows.max_tokens).encode(rows.test.texts)
    tokens, labels = tokens_file(place / "test.jsonl", encoded), np.array(rows.test.labels)
    reference: np.ndarray | None = None
    for one in SUBJECTS:
        full = {**key, "subject": one.name, "digest": int8_subjects.digest(place, one), "vnni": has_vnni()}

        def ask(precise: bool, one: Subject = one) -> np.ndarray:
            options = {"work": work, "place": place, "threads": use_threads()}
            return answers(one, encoded, tokens, precise=precise, **options)

        def found(one: Subject = one) -> list[dict[str, Any]]:
            nonlocal reference
            reference = ask(False, FP32) if reference is None else reference
            line = {"subject": one.name, "bytes": model_bytes(place, one), **beside(ask(False), reference, labels)}
            if not has_vnni() and one.peer != "nncf" and one is not FP32:
                line["exact"] = beside(ask(True), reference, labels)
            return [line]

        log.once(full, found)


def beside(logits: np.ndarray, reference: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Accuracy, agreement and distance of logits of shape (rows, classes) from the reference's."""
    decided, right = logits.argmax(1), logits.argmax(1) == labels
    return {
        "rows": len(labels),
        "accuracy": float(right.mean()),
        "agreement": float((decided == reference.argmax(1)).mean()),
        "largest_difference": float(np.abs(logits - reference).max()),
        "mean_difference": float(np.abs(logits - reference).mean()),
        "right": np.packbits(right).tobytes().hex(),
    }


def files(given: argparse.Namespace, log: Log, *, fold: int | None = None) -> None:
    """Checkpoints, INT8 files and scores of one data set or fold."""
    rows = rows_of(given.work, given.data)
    rows = rows if fold is None else held_out(rows, fold)
    for layers in given.layers:
        place = place_of(given.work, given.data, layers, fold)
        checkpoint(rows, work=given.work, data=given.data, layers=layers, fold=fold, ready=dict(given.ready))
        for one in SUBJECTS:
            if one.name in given.redo:
                shutil.rmtree(int8_subjects.model_folder(place, one), ignore_errors=True)
        int8_subjects.make_models(SUBJECTS, rows, work=given.work, place=place)
        key = {"what": "answers", "data": given.data, "layers": layers, "fold": fold}
        score(log, rows, work=given.work, key=key, place=place)


def time_all(given: argparse.Namespace, log: Log) -> None:
    """One timing line for each model of the data set: every file in the same run."""
    rows = rows_of(given.work, given.data)
    assert rows.test is not None
    for layers in given.layers:
        place = place_of(given.work, given.data, layers)
        with tempfile.TemporaryDirectory() as folder:
            texts = draw_texts(rows.test.texts, rows=TIMED_ROWS)
            drawn = write_rows(Path(folder) / "rows.jsonl", texts)
            encoded = open_encoder(place / "checkpoint", rows.max_tokens).encode(texts)
            tokens = tokens_file(Path(folder) / "tokens.jsonl", encoded)
            commands = [
                command(name, one, drawn, tokens, work=given.work, place=place, threads=given.threads)
                for name, one in timed_subjects().items()
            ]
            line = timed(commands, rows=len(texts), rounds=given.rounds, threads=given.threads)
        lengths = np.quantile(encoded.lengths, [0.1, 0.5, 0.9]).tolist()
        key = {"what": "timing", "data": given.data, "layers": layers, "at": time.strftime("%Y-%m-%d %H:%M:%S")}
        log.once(key, lambda line=line, lengths=lengths: [{**line, "tokens": lengths}])


def timed_subjects() -> dict[str, Subject]:
    """Name of each process to what it runs: all that is made for this processor, and fp32 a second time."""
    return {one.name: one for one in SUBJECTS if one is not OURS_VNNI} | {AGAIN: FP32}


def command(name: str, subject: Subject, rows: Path, tokens: Path, *, work: Path, place: Path, threads: int) -> Command:
    """What starts the process of a subject."""
    file = model_file(place, subject)
    if subject.peer == "nncf":
        line = int8_subjects.timed_openvino(file, tokens, work=work, threads=threads)
        return Command(name, line, {"OMP_NUM_THREADS": str(threads), **int8_subjects.ENVIRONMENT})
    return Command(
        name,
        tuple(timed_command(file.parent, engine="onnxruntime", threads=threads, rows=rows)),
        timed_environment(threads),
    )


def timed(commands: list[Command], *, rows: int, rounds: int, threads: int) -> dict[str, Any]:
    """Medians of every round and of all, in milliseconds, and the conditions."""
    machine, started = fingerprint(), time.monotonic()
    timing = time_in_turn(commands, rows=rows, rounds=rounds, threads=threads, progress=print_rounds)
    medians = {one.name: p50_by_round(timing.rounds_of(one.name)) for one in commands}
    whole = {one.name: median_interval(list(timing.rounds_of(one.name).values())) for one in commands}
    seconds = time.monotonic() - started
    graded = quality(
        machine,
        threads=threads,
        busy_share=timing.busy_before,
        load=timing.load_before,
        stolen_share=None if timing.stolen_seconds is None else timing.stolen_seconds / seconds,
        throttled=timing.throttled,
        noise=ratio_interval(medians[AGAIN], medians[FP32.name]),
    )
    return {
        "threads": threads,
        "rounds": rounds,
        "quality": {"grade": graded.grade, "because": list(graded.because)},
        "p50_ms": {name: [round(one, 4) for one in series] for name, series in medians.items()},
        "median_ms": {name: [round(one, 4) for one in (w.value, w.low, w.high)] for name, w in whole.items()},
        "machine": machine,
    }


def print_rounds(what: str, done: int, total: int | None) -> None:
    """A line at each tenth."""
    if total and done % max(1, total // 10) == 0:
        print(f"{what} {done}/{total}", flush=True)


def ready_folder(text: str) -> tuple[int, Path]:
    """LAYERS=FOLDER of the command line."""
    layers, _, folder = text.partition("=")
    if not layers.isdigit() or not (Path(folder) / "config.json").is_file():
        raise argparse.ArgumentTypeError(f"must be LAYERS=FOLDER with a model folder, such as 6=runs/x (got {text})")
    return int(layers), Path(folder)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["environments", "files", "time", "folds", "table"])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/int8"))
    parser.add_argument("--data", choices=list(DATA), default="movies")
    parser.add_argument("--layers", type=int, nargs="+", choices=LAYERS)
    parser.add_argument("--ready", type=ready_folder, nargs="+", default=[], help="LAYERS=FOLDER taken as it is")
    parser.add_argument("--redo", nargs="+", default=[], choices=[one.name for one in SUBJECTS], help="make again")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2, help="of each timed process")
    parser.add_argument("--fold", type=int, nargs="+", default=list(range(FOLDS)), choices=range(FOLDS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    given.work = given.work.resolve()
    given.layers = given.layers or (list(LAYERS) if given.do != "folds" else [TEACHER_LAYERS])
    return given


def main() -> None:
    given = parsed()
    log = Log(given.results)
    if given.do == "environments":
        for file in sorted(PEERS.glob("*.txt")):
            int8_subjects.make_environment(given.work, file.stem)
    elif given.do == "files":
        files(given, log)
    elif given.do == "folds":
        for number in given.fold:
            files(given, log, fold=number)
    elif given.do == "time":
        time_all(given, log)
    text = table(log.lines())
    given.results.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
