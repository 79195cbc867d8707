"""Structured pruning of the movie teacher: what is lost without training and with recovery, beside TextPruner's choice.

    python benchmarks/pruning.py environment
    python benchmarks/pruning.py plain     [--only SUBJECT]
    python benchmarks/pruning.py recovered [--only SUBJECT] [--epochs 3]
    python benchmarks/pruning.py time      [--rounds 30]
    python benchmarks/pruning.py table

All take --model FOLDER (safetensors of recipes/teacher-movies.yaml's teacher) and --work DIR. `plain` cuts half and two
thirds of the encoder's multiply-accumulates without training: one-shot and in steps, by each criterion, and the heads
and neurons that TextPruner 1.1.post2 keeps (its own process and environment, the same number of labelled rows, 1 and 16
iterations), which our surgery cuts. `recovered` prunes to half and a quarter of the measured latency with distillation
between the cuts, and cuts by magnitude, at random and by TextPruner's choice to the same multiply-accumulates, trained
equally long. `time` measures the recovered models side by side. Seconds are the processor's, of one thread, for choice
and cut. Scores are on the 2,000 test rows, paired with the uncut model.

Lines are appended to benchmarks/results/pruning.jsonl as they are found, so that a stopped command goes on; `table`
writes pruning.md from them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from movies import ROOT, Log, gain, movies, right_rows, scored, use_threads

from compressor.data.encode import open_encoder
from compressor.data.rows import DataSets
from compressor.distill.distiller import Distiller
from compressor.model.encoders import load_model, save_model
from compressor.model.footprint import head_macs, macs, neuron_macs
from compressor.model.manifest import read_manifest
from compressor.model.surgery import Kept, cut
from compressor.prune.pruner import Pruner
from compressor.report.measure import measure
from compressor.stage import Decision
from compressor.train.finetune import manifest_of, probe_inputs
from compressor.train.settings import Train

RESULTS = ROOT / "benchmarks" / "results" / "pruning.jsonl"
TABLE = RESULTS.with_suffix(".md")
PEERS = ROOT / "benchmarks" / "prune_peers"
TEXTPRUNER = "textpruner==1.1.post2"
"""Installed without what it asks for: it takes Python 3.11 for one before 3.8, and asks for a numpy below 1.22."""
SHARES = ("0.5x", "0.3333x")
LATENCIES = ("0.5x", "0.25x")
SAMPLE_ROWS = 512
"""Labelled rows that a choice may look at; as many as Pruner takes."""


@dataclass(frozen=True)
class Setup:
    """What all subjects share."""

    model: Path
    work: Path
    data: DataSets
    epochs: float


def pruner(remove: dict[str, Any], **more: Any) -> Callable[[Setup, str, Path], Path]:
    """A subject of our own: the folder after pruning to a share of the multiply-accumulates, without training."""

    def made(setup: Setup, share: str, place: Path) -> Path:
        return Pruner(setup.model, data=setup.data, remove=remove, until={"macs": share}, **more).fit(place / "model")

    return made


def both(criterion: str) -> dict[str, Any]:
    """Heads and neurons by one criterion."""
    return {"heads": criterion, "ffn": criterion}


def textpruner(iterations: int) -> Callable[[Setup, str, Path], Path]:
    """TextPruner's choice, cut by our surgery."""

    def made(setup: Setup, share: str, place: Path) -> Path:
        kept = choice_of_textpruner(setup, float(share.rstrip("x")), place, iterations=iterations)
        return save_cut(setup, kept, place / "model")

    return made


SUBJECTS: dict[str, Callable[[Setup, str, Path], Path]] = {
    "random": pruner(both("random")),
    "magnitude": pruner(both("magnitude")),
    "activation": pruner(both("activation")),
    "taylor": pruner(both("taylor")),
    "fisher": pruner(both("fisher")),
    "taylor, 8 steps": pruner(both("taylor"), steps=8),
    "fisher, 8 steps": pruner(both("fisher"), steps=8),
    "fisher, 4 steps, reconstructed": pruner(both("fisher"), steps=4, reconstruct=True),
    "surgeon against itself, reconstructed": pruner({**both("surgeon"), "against": "itself"}, reconstruct=True),
    "textpruner, one shot": textpruner(1),
    "textpruner, 16 iterations": textpruner(16),
}
"""Without training: name to what makes the folder of (setup, share, place)."""


def make_environment(work: Path) -> None:
    """TextPruner with the transformers that it runs on."""
    place = work / "env" / "textpruner"
    if (place / "made").is_file():
        return
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")]
    venv.create(place, with_pip=True)
    (place / "torch.txt").write_text("\n".join(pins) + "\n", encoding="utf-8")
    command = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "-c", str(place / "torch.txt")]
    subprocess.run([*command, "-r", str(PEERS / "textpruner.txt")], check=True)
    subprocess.run([*command, "--no-deps", TEXTPRUNER], check=True)
    (place / "made").touch()


def choice_of_textpruner(setup: Setup, share: float, place: Path, *, iterations: int) -> Kept:
    """The heads and neurons that it keeps at that share of the multiply-accumulates."""
    place.mkdir(parents=True, exist_ok=True)
    rows, out = place / "rows.jsonl", place / "kept.json"
    write_sample(setup, rows)
    heads, neurons = even_sizes(setup.model, share)
    sizes = ["--heads", str(heads), "--neurons", str(neurons), "--iterations", str(iterations)]
    python = setup.work / "env" / "textpruner" / "bin" / "python"
    command = [str(python), "-P", str(PEERS / "textpruner_choice.py"), str(setup.model), str(rows), str(out), *sizes]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(use_threads())})
    found = json.loads(out.read_text(encoding="utf-8"))
    kept_heads, kept_neurons = (tuple(map(tuple, found[name])) for name in ("heads", "neurons"))
    return Kept(kept_heads, kept_neurons, tuple(range(len(kept_heads))))


def peer_seconds(place: Path) -> float:
    """What the choice took that lies there; 0 where it was our own."""
    file = place / "kept.json"
    return float(json.loads(file.read_text(encoding="utf-8"))["seconds"]) if file.is_file() else 0.0


def write_sample(setup: Setup, file: Path) -> None:
    """Labelled train rows as token ids, in a drawn order."""
    chosen = random.Random(17).sample(range(len(setup.data.train)), SAMPLE_ROWS)
    rows = setup.data.train.take(chosen)
    encoder = open_encoder(setup.model, setup.data.max_tokens)
    encoded = encoder.tokenizer.encode_batch(list(rows.texts))
    lines = (json.dumps({"ids": one.ids, "label": label}) for one, label in zip(encoded, rows.labels, strict=True))
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def even_sizes(model: Path, share: float) -> tuple[int, int]:
    """Heads and neurons a layer, on average, that leave that share: as much of both, the neurons filling up."""
    sizes = read_manifest(model).shapes
    layer, hidden = sizes.layers[0], sizes.hidden
    of_head, of_neuron = head_macs(layer.head_size, hidden), neuron_macs(hidden)
    heads = max(1, round(layer.heads * share))
    left = share * (layer.heads * of_head + layer.ffn * of_neuron) - heads * of_head
    return heads, max(1, int(left / of_neuron))


def save_cut(setup: Setup, kept: Kept, out: Path, *, epochs: float | None = None) -> Path:
    """The folder of the model cut to `kept`, after so many epochs of distillation where a number is given."""
    model = cut(load_model(setup.model, labels=setup.data.labels), kept)
    if epochs is not None:
        return Distiller(setup.model, model, data=setup.data, train=recovery(epochs), tokenizer=setup.model).fit(out)
    probe = probe_inputs(setup.data.train, open_encoder(setup.model, setup.data.max_tokens))
    manifest = manifest_of(setup.data, model)
    return save_model(model.eval(), out, tokenizer_from=setup.model, manifest=manifest, probe=probe)


def recovery(epochs: float) -> Train:
    """The training after the cuts, the same for all subjects."""
    return Train(epochs=epochs, learning_rate=1e-4, schedule="linear", warmup=0.1, batch_tokens=1024)


def plain(setup: Setup, log: Log, only: str | None) -> None:
    """A line for each subject and share."""
    log.once({"phase": "plain", "share": "1x"}, lambda: [{"subject": "uncut", **scored(setup.model, setup.data)}])
    for share in SHARES:
        for name, make in SUBJECTS.items():
            if only is None or only == name:

                def line(name: str = name, make: Any = make, share: str = share) -> list[dict[str, Any]]:
                    place = setup.work / "plain" / share / name.replace(",", "").replace(" ", "-")
                    started = time.process_time()
                    folder = make(setup, share, place)
                    seconds = time.process_time() - started + peer_seconds(place)
                    return [{"subject": name, "seconds": round(seconds, 1), **left_of(setup, folder)}]

                log.once({"phase": "plain", "share": share, "subject": name, "threads": use_threads()}, line)


def left_of(setup: Setup, folder: Path) -> dict[str, Any]:
    """Score of a folder and its share of the multiply-accumulates."""
    share = macs(read_manifest(folder).shapes) / macs(read_manifest(setup.model).shapes)
    return {"macs": round(share, 4), **scored(folder, setup.data)}


def ours_to_latency(setup: Setup, share: str, place: Path) -> tuple[Path, dict[str, Any]]:
    """Our pruning to a share of the latency, with what was measured of it."""
    told: list[Decision] = []
    folder = Pruner(
        setup.model,
        data=setup.data,
        remove={**both("fisher"), "layers": "fisher"},
        until={"latency": share},
        steps=3,
        recover={"train": recovery(setup.epochs)},
        threads=use_threads(),
        decide=told.append,
    ).fit(place / "model", work=place / "work")
    return folder, {one.kind: one.because for one in told if one.kind in ("latency", "latency table")}


def recovered(setup: Setup, log: Log, only: str | None) -> None:
    """Ours to each latency, then the others to the multiply-accumulates that are left there."""
    for share in LATENCIES:
        place = setup.work / "recovered" / share
        key = {"phase": "recovered", "share": share, "epochs": setup.epochs}

        def own(share: str = share, place: Path = place) -> list[dict[str, Any]]:
            folder, told = ours_to_latency(setup, share, place / "ours")
            return [{"told": told, **left_of(setup, folder)}]

        log.once({**key, "subject": "ours"}, own)
        left = next(line["macs"] for line in log.lines() if {**key, "subject": "ours"}.items() <= line.items())
        for name in ("magnitude", "random", "textpruner, 16 iterations"):
            if only is None or only == name:

                def other(name: str = name, place: Path = place, left: float = left) -> list[dict[str, Any]]:
                    return [left_of(setup, rival(setup, name, left, place / name.split(",")[0]))]

                log.once({**key, "subject": name}, other)


def rival(setup: Setup, name: str, share: float, place: Path) -> Path:
    """Another choice at the same multiply-accumulates, trained as long."""
    if name.startswith("textpruner"):
        kept = choice_of_textpruner(setup, share, place, iterations=16)
        return save_cut(setup, kept, place / "model", epochs=setup.epochs)
    made = Pruner(
        setup.model,
        data=setup.data,
        remove=both(name),
        until={"macs": f"{share}x"},
        steps=3,
        recover={"train": recovery(setup.epochs)},
    )
    return made.fit(place / "model", work=place / "work")


def timed(setup: Setup, log: Log, rounds: int) -> None:
    """p50 of every recovered model in the uncut model's, all in one run."""
    places = {
        f"{share} {file.parent.name}": file
        for share in LATENCIES
        for file in sorted((setup.work / "recovered" / share).glob("*/model"))
    }
    threads = use_threads()
    report = measure({"uncut": setup.model, **places}, data=setup.data, rounds=rounds, threads=threads)
    lines = [
        {
            "subject": one.name,
            "ratio": one.latency[0].ratio.model_dump() if one.latency[0].ratio else None,
            "p50_ms": one.latency[0].p50_ms.model_dump() if one.latency[0].p50_ms else None,
        }
        for one in report.subjects
    ]
    log.once({"phase": "time", "threads": threads, "rounds": rounds}, lambda: lines)


def says(low: float, high: float) -> str:
    """What an interval of a gain beside the uncut model says."""
    return "gains" if low > 0 else "loses" if high < 0 else "no difference shown"


def table(lines: list[dict[str, Any]]) -> str:
    """The results as markdown; drops are paired on the test rows."""
    uncut = next(line for line in lines if line.get("subject") == "uncut" and line["phase"] == "plain")
    before = right_rows(uncut)
    out = [
        "# Structured pruning of the movie teacher",
        "",
        "`python benchmarks/pruning.py table`",
        "",
        f"Uncut: {100 * uncut['accuracy']:.2f} % of 2,000 test rows. Gains are paired, with 95 % intervals.",
        "",
        "| | aim | subject | MACs left | seconds | accuracy % | beside uncut, pp | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        if line["phase"] not in ("plain", "recovered") or line is uncut:
            continue
        value, low, high = gain(before, right_rows(line))
        aim = f"{line['share']} {'MACs' if line['phase'] == 'plain' else 'latency of ours'}"
        out.append(
            f"| {line['phase']} | {aim} | {line['subject']} | {line['macs']:.3f} | {line.get('seconds', '')} | "
            f"{100 * line['accuracy']:.2f} | {value:+.2f} ({low:+.2f} to {high:+.2f}) | {says(low, high)} |"
        )
    for line in lines:
        if line["phase"] == "time" and line.get("ratio"):
            ratio = line["ratio"]
            out.append(
                f"\n- {line['subject']}: {ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}) of p50"
            )
    return "\n".join(out) + "\n"


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("environment", "plain", "recovered", "time", "table"))
    parser.add_argument("--model", type=Path, default=Path("runs/teacher-movies/stages/teacher/model"))
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/pruning"))
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only")
    given = parser.parse_args()
    log = Log(RESULTS)
    if given.what == "environment":
        make_environment(given.work)
    elif given.what == "table":
        TABLE.write_text(table(log.lines()), encoding="utf-8")
        print(TABLE.read_text(encoding="utf-8"))
    else:
        setup = Setup(given.model.resolve(), given.work.resolve(), movies(), given.epochs)
        if given.what == "plain":
            plain(setup, log, given.only)
        elif given.what == "recovered":
            recovered(setup, log, given.only)
        else:
            timed(setup, log, given.rounds)


if __name__ == "__main__":
    main()
