"""A large teacher of another family: MPNet-base teaches MiniLM-shaped students of 3 and 2 layers.

    python benchmarks/mpnet.py --encoder FOLDER [--work DIR] [--epochs N]

FOLDER is all-mpnet-base-v2 (its five PyPI packages hold the parts of one zip). The teacher is fine-tuned on all 7,043
train snippets for two epochs. Students start from MiniLM's layers and learn from its answers, with and without what is
inside it (MiniLMv2 relations of the last layer; the tokens of the two align); or from those of MiniLM fine-tuned on the
same labels, at a lower rate. Seconds are those of the steps. Trainings are appended to benchmarks/results/mpnet.jsonl
as they end; the table goes to mpnet.md.
"""

from __future__ import annotations

import argparse
import json
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
TUNED = "fine-tuned MiniLM"
RATES = {"MiniLM": 3e-4, TUNED: 1e-4}
"""Start of the students to their learning rate."""


def teacher_of(encoder: Path, data: DataSets, work: Path) -> Path:
    """MPNet fine-tuned on the snippets; made once, resumed where it was stopped."""
    out = work / "teacher"
    if not (out / "compressor.json").is_file():
        train = Train(epochs=2, learning_rate=4e-5, batch_tokens=1024, checkpoint=20)
        Finetuner(encoder, data=data, train=train, progress=_say).fit(out)
    return out


def tuned_of(data: DataSets, work: Path) -> Path:
    """MiniLM fine-tuned as in recipes/teacher-movies.yaml; made once."""
    out = work / "minilm"
    if not (out / "compressor.json").is_file():
        train = Train(epochs=3, learning_rate=8e-5, schedule="cosine", warmup=0.1, batch_tokens=800)
        Finetuner(encoder_folder(), data=data, train=train, progress=_say).fit(out)
    return out


def student_of(
    teacher: Path, data: DataSets, work: Path, *, layers: int, terms: str, start: str, epochs: float
) -> dict[str, Any]:
    """Scores of one student, its score before training, and the seconds of its steps; the cache is shared."""
    told: dict[str, Any] = {}
    place = work / f"student-{layers}-{terms}{'' if start == 'MiniLM' else f' from {start}'}".replace(" ", "-")
    source = tuned_of(data, work) if start == TUNED else encoder_folder()
    made = Distiller(
        teacher,
        {"layers": layers, "init": {"from": str(source)}},
        data=data,
        match=TERMS[terms],
        mix=mix.unlabelled(0.07),
        train=Train(epochs=epochs, learning_rate=RATES[start], batch_tokens=1024),
        progress=_say,
        decide=lambda decision: told.update({decision.kind: decision.chosen}),
    ).fit(place / "model", work=place, cache_at=work / "cache")
    last = (place / "steps.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    seconds = round(json.loads(last)["seconds"], 1)
    return {"subject": f"{layers} layers", "start": told.get("start"), "seconds": seconds, **scored(made, data)}


def table(lines: list[dict[str, Any]]) -> str:
    """The results as markdown; drops are paired on the test rows."""
    teacher = next((line for line in lines if line["subject"] == "teacher"), None)
    out = [
        "| subject | starts from | terms | seconds | before training % | accuracy % | beside the teacher, pp | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        before = f"{100 * line['start']:.1f}" if line.get("start") is not None else ""
        told = " | "
        if teacher is not None and line is not teacher:
            value, low, high = gain(right_rows(teacher), right_rows(line))
            told = f"{value:+.1f} ({low:+.1f} to {high:+.1f}) | {verdict(low, high) if low > 0 else ''}"
        out.append(
            f"| {line['subject']} | {line.get('from', '')} | {line['terms']} | {line.get('seconds', '')} | {before} | "
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
    log.once(
        {"terms": "labels", "threads": threads, "from": TUNED},
        lambda: [{"subject": "6 layers", **scored(tuned_of(data, given.work), data)}],
    )
    for terms, start in (*((terms, "MiniLM") for terms in TERMS), ("logits", TUNED)):
        for layers in (3, 2):
            made = partial(
                student_of, teacher, data, given.work, layers=layers, terms=terms, start=start, epochs=given.epochs
            )
            key = {"terms": terms, "from": start, "layers": layers, "epochs": given.epochs, "threads": threads}
            log.once(key, lambda made=made: [made()])
    TABLE.write_text(table(log.lines()), encoding="utf-8")
    print(table(log.lines()))


if __name__ == "__main__":
    main()
