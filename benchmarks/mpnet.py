"""A large teacher of another family: MPNet-base teaches MiniLM-shaped students of 3 and 2 layers.

    python benchmarks/mpnet.py --encoder FOLDER [--work DIR] [--epochs N] [--report]

FOLDER is all-mpnet-base-v2 (its five PyPI packages hold the parts of one zip). The teacher is fine-tuned on all 7,043
train snippets for two epochs, the students start from MiniLM's layers and learn from its answers, with and without what
is inside it (MiniLMv2 relations of the last layer; the tokens of the two align). Trainings are appended to
benchmarks/results/mpnet.jsonl as they end; the table goes to mpnet.md.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

from movies import ROOT, Log, encoder_folder, gain, movies, right_rows, scored, use_threads, verdict

from compressor.data import mix
from compressor.data.rows import DataSets
from compressor.distill import match
from compressor.distill.distiller import Distiller
from compressor.settings import ramp
from compressor.train.finetune import Finetuner
from compressor.train.settings import Train

RESULTS = ROOT / "benchmarks" / "results" / "mpnet.jsonl"
TABLE = RESULTS.with_suffix(".md")
KL = match.logits("kl", temperature=ramp(4, 1))
TERMS: dict[str, tuple[Any, ...]] = {"logits and relations": (KL, match.relations(weight=0.5)), "logits": (KL,)}
"""The first needs all that the teacher says, so that the other finds its cache."""


def teacher_of(encoder: Path, data: DataSets, work: Path) -> Path:
    """MPNet fine-tuned on the snippets; made once, resumed where it was stopped."""
    out = work / "teacher"
    if not (out / "compressor.json").is_file():
        train = Train(epochs=2, learning_rate=4e-5, batch_tokens=1024, checkpoint=20)
        Finetuner(encoder, data=data, train=train, progress=_say).fit(out)
    return out


def student_of(teacher: Path, data: DataSets, work: Path, *, layers: int, terms: str, epochs: float) -> dict[str, Any]:
    """Scores of one student, its score before training, and the seconds that it took; the cache is shared."""
    told: dict[str, Any] = {}
    place = work / f"student-{layers}-{terms.replace(' ', '-')}"
    started = time.perf_counter()
    made = Distiller(
        teacher,
        {"layers": layers, "init": {"from": str(encoder_folder())}},
        data=data,
        match=TERMS[terms],
        mix=mix.unlabelled(0.07),
        train=Train(epochs=epochs, learning_rate=3e-4, batch_tokens=1024),
        progress=_say,
        decide=lambda decision: told.update({decision.kind: decision.chosen}),
    ).fit(place / "model", work=place, cache_at=work / "cache")
    seconds = round(time.perf_counter() - started, 1)
    return {"subject": f"{layers} layers", "start": told.get("start"), "seconds": seconds, **scored(made, data)}


def table(lines: list[dict[str, Any]]) -> str:
    """The results as markdown; drops are paired on the test rows."""
    teacher = next((line for line in lines if line["subject"] == "teacher"), None)
    out = [
        "| subject | terms | seconds | before training % | accuracy % | beside the teacher, pp | |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        before = f"{100 * line['start']:.1f}" if line.get("start") is not None else ""
        told = " | "
        if teacher is not None and line is not teacher:
            value, low, high = gain(right_rows(teacher), right_rows(line))
            told = f"{value:+.1f} ({low:+.1f} to {high:+.1f}) | {verdict(low, high) if low > 0 else ''}"
        out.append(
            f"| {line['subject']} | {line['terms']} | {line.get('seconds', '')} | {before} | "
            f"{100 * line['accuracy']:.2f} | {told} |"
        )
    return "\n".join(out) + "\n"


def _say(what: str, done: int, total: int | None) -> None:
    if total and done % max(1, total // 10) == 0:
        print(f"{what} {done}/{total}", flush=True)


def main() -> None:
    """Train what is missing, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/mpnet"))
    parser.add_argument("--epochs", type=float, default=5.0)
    given = parser.parse_args()
    log, threads, data = Log(RESULTS), use_threads(), movies()
    teacher = teacher_of(given.encoder, data, given.work)
    log.once({"terms": "labels", "threads": threads}, lambda: [{"subject": "teacher", **scored(teacher, data)}])
    for terms in TERMS:
        for layers in (3, 2):
            made = partial(student_of, teacher, data, given.work, layers=layers, terms=terms, epochs=given.epochs)
            key = {"terms": terms, "layers": layers, "epochs": given.epochs, "threads": threads}
            log.once(key, lambda made=made: [made()])
    TABLE.write_text(table(log.lines()), encoding="utf-8")
    print(table(log.lines()))


if __name__ == "__main__":
    main()
