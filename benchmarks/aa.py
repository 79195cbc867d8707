"""Are copies of one model called faster or slower on a machine that other work disturbs, and is a lighter one found?

    python benchmarks/aa.py [--teacher FOLDER] [--work DIR] [--width N] [--runs N] [--rounds N] [--slot SECONDS]
    python benchmarks/aa.py --judge

Subjects: a BERT with the layers and tokenizer of the MiniLM that recipes/teacher-movies.yaml starts from (or of the
teacher given) and a width of 128, as ONNX, its weights random, as times do not depend on them; the same file again,
whose interval is the noise floor as in every report; a copy of it; and the model with one layer fewer. Each run starts
them anew and times them as a report does: 64 of the data's rows, one pinned process each, rounds in a balanced order,
interval of the paired log ratios (Student's t with Newey and West's error), and the verdict beside the noise floor.

The load: for every usable processor a process that works for 1 to 5 seconds, rests as long, and so on, at the same
priority, from before the first run until after the last. Slots are shorter than a report's, so that the subjects of a
round are mostly disturbed alike, and rounds are more. Asked for: the copy called faster or slower in at most 3 of 20
runs, one layer fewer called faster. Every run is kept in --result as it ends, with the medians of its rounds, from
which --judge makes intervals and verdicts again, by the statistics of now.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "aa.json"
MOST_ALARMS, OF_RUNS = 3, 20
SPELL = (1.0, 5.0)
"""Seconds that a disturbing process works, and that it rests, at least and at most."""
REFERENCE, AGAIN, COPY, LIGHTER = "model", "model/aa", "copy", "one layer fewer"


def disturb(seed: int) -> None:
    """Work and rest by turns, as long as the process that asked for it lives."""
    drawn, asked_by = random.Random(seed), os.getppid()
    while os.getppid() == asked_by:
        end = time.monotonic() + drawn.uniform(*SPELL)
        while time.monotonic() < end:
            pass
        time.sleep(drawn.uniform(*SPELL))


@contextlib.contextmanager
def load_on(cpus: tuple[int, ...]) -> Iterator[None]:
    """A disturbing process for each processor, ended afterwards."""
    command = [sys.executable, str(Path(__file__).resolve()), "--disturb"]
    running = [subprocess.Popen([*command, str(number)]) for number in cpus]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def subjects(teacher: Path, work: Path, width: int) -> dict[str, Path]:
    """Name to ONNX folder; made once."""
    layers = json.loads((teacher / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    onnx, copy, lighter = (work / f"{name}-{width}" for name in ("model", "copy", "lighter"))
    for folder, depth in ((onnx, layers), (lighter, layers - 1)):
        if not folder.is_dir():
            make(teacher, folder, width=width, layers=depth)
    if not copy.is_dir():
        shutil.copytree(onnx, copy)
    return {REFERENCE: onnx, AGAIN: onnx, COPY: copy, LIGHTER: lighter}


def make(teacher: Path, folder: Path, *, width: int, layers: int) -> None:
    """A classifier of that size with the teacher's tokenizer and random weights, as ONNX."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    from compressor.export.exporter import Exporter

    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 32}
    config = AutoConfig.from_pretrained(teacher, num_hidden_layers=layers, num_labels=2, **shape)
    torch.manual_seed(17)
    with tempfile.TemporaryDirectory() as made:
        AutoModelForSequenceClassification.from_config(config).save_pretrained(made)
        AutoTokenizer.from_pretrained(teacher).save_pretrained(made)
        Exporter(made).export(folder)


def timed_once(folders: dict[str, Path], rows: Path, count: int, settings: dict[str, Any]) -> dict[str, Any]:
    """One run: ratios to the reference with intervals, verdicts, and the medians of each round in milliseconds."""
    from compressor.bench.isolation import Command, time_in_turn
    from compressor.bench.statistics import p50_by_round
    from compressor.runtime.timed import timed_command, timed_environment

    threads = settings["threads"]
    commands = []
    for name, folder in folders.items():
        line = timed_command(folder, engine="onnxruntime", threads=threads, rows=rows)
        commands.append(Command(name, tuple(line), timed_environment(threads)))
    began = time.monotonic()
    timing = time_in_turn(
        commands, rows=count, rounds=settings["rounds"], threads=threads, slot_seconds=settings["slot_seconds"]
    )
    medians = {name: [round(one, 4) for one in p50_by_round(timing.rounds_of(name))] for name in folders}
    return {
        "seconds": round(time.monotonic() - began, 1),
        "busy_before": timing.busy_before,
        "load_before": timing.load_before,
        **judged(medians),
        "p50_ms": medians,
    }


def judged(medians: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Ratios with their intervals, and verdicts, from the median milliseconds of every round."""
    from compressor.bench.statistics import ratio_interval, speed_verdict

    ratios = {name: ratio_interval(medians[name], medians[REFERENCE]) for name in (AGAIN, COPY, LIGHTER)}
    return {
        "ratios": {name: {key: round(one, 4) for key, one in asdict(ratio).items()} for name, ratio in ratios.items()},
        "verdicts": {name: speed_verdict(ratios[name], ratios[AGAIN]) for name in (COPY, LIGHTER)},
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of the verdicts, and whether false alarms are as few as asked for."""
    from compressor.bench.statistics import ratio_interval

    over = {
        name: asdict(ratio_interval([run["ratios"][name]["value"] for run in runs], [1.0] * len(runs)))
        for name in (AGAIN, COPY, LIGHTER)
        if len(runs) > 1
    }
    verdicts = {name: dict(Counter(run["verdicts"][name] for run in runs)) for name in (COPY, LIGHTER)}
    alarms = sum(verdicts[COPY].get(word, 0) for word in ("faster", "slower"))
    return {
        "runs": len(runs),
        "false_alarms": alarms,
        "verdicts": verdicts,
        "ratios_over_runs": over,
        "alarms_kept": alarms <= MOST_ALARMS * len(runs) / OF_RUNS,
    }


def markdown(found: dict[str, Any]) -> str:
    """The result as a table of runs."""

    def shown(ratio: dict[str, float]) -> str:
        return f"{ratio['value']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"

    told, machine, settings = found["summary"], found["machine"], found["settings"]
    lines = [
        "# Copies of one model on a loaded machine",
        "",
        f"`{found['command']}` on {machine['cpu']} with {machine['usable']} processors.",
        f"Width {settings['width']}, threads {settings['threads']}, {settings['rounds']} rounds of slots of "
        f"{settings['slot_seconds']:g} s; for each processor a process that works and rests by turns.",
        "",
        f"The copy was called faster or slower in {told['false_alarms']} of {told['runs']} runs "
        f"(at most {MOST_ALARMS} of {OF_RUNS} are asked for).",
        f"One layer fewer was called faster in {told['verdicts'][LIGHTER].get('faster', 0)} of {told['runs']}.",
        "Over all runs: "
        + "; ".join(f"{name} {shown(ratio)}" for name, ratio in told["ratios_over_runs"].items())
        + ".",
        "Ratios on a machine this loaded are not those of a quiet one.",
        "",
        "| run | itself again | copy | verdict | one layer fewer | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for number, run in enumerate(found["runs"], 1):
        again, copy, lighter = (shown(run["ratios"][name]) for name in (AGAIN, COPY, LIGHTER))
        words = run["verdicts"]
        lines.append(f"| {number} | {again} | {copy} | {words[COPY]} | {lighter} | {words[LIGHTER]} |")
    return "\n".join(lines) + "\n"


def write(path: Path, found: dict[str, Any]) -> None:
    """The result with its summary, as JSON and as markdown."""
    found["summary"] = summary(found["runs"])
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(found), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, help="model folder whose tokenizer and layers are taken")
    parser.add_argument("--width", type=int, default=128, help="of the subjects, a multiple of 32")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "aa")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--runs", type=int, default=OF_RUNS)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--slot", type=float, default=0.05, help="seconds of a slot")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--judge", action="store_true", help="judge the rounds kept in --result anew; time nothing")
    parser.add_argument("--disturb", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.disturb is not None:
        disturb(given.disturb)
        return
    if given.judge:
        kept = json.loads(given.result.read_text(encoding="utf-8"))
        kept["runs"] = [{**run, **judged(run["p50_ms"])} for run in kept["runs"]]
        write(given.result, kept)
        return
    from movies import encoder_folder, movies

    from compressor.bench.machine import fingerprint, usable_cpus
    from compressor.report.subjects import draw_texts
    from compressor.runtime.timed import write_rows

    given.work.mkdir(parents=True, exist_ok=True)
    settings = {"rounds": given.rounds, "slot_seconds": given.slot, "threads": given.threads, "width": given.width}
    data = movies()
    drawn = draw_texts((data.test or data.select).texts)
    rows = write_rows(given.work / "rows.jsonl", drawn)
    folders = subjects(given.teacher or encoder_folder(), given.work, given.width)
    found: dict[str, Any] = {
        "command": "python benchmarks/aa.py",
        "settings": settings,
        "machine": fingerprint(),
        "summary": {},
        "runs": [],
    }
    with load_on(usable_cpus()):
        for number in range(given.runs):
            run = timed_once(folders, rows, len(drawn), settings)
            found["runs"].append(run)
            write(given.result, found)
            print(f"run {number + 1}: {run['ratios']} {run['verdicts']} in {run['seconds']} s", flush=True)
    print(json.dumps(found["summary"]))


if __name__ == "__main__":
    main()
