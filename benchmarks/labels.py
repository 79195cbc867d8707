"""What distillation and unlabelled rows are worth: labels {100, 500, all} x unlabelled {0, 2k, all}, three seeds.

    python benchmarks/labels.py [--work DIR] [--seeds N] [--steps N] [--report]

Teacher: MiniLM of 6 layers fine-tuned on the labels. Students: its 3 layers, the same start and the same steps: on
labels alone (learning rate the best of three on select), distilled on the labelled rows, distilled with unlabelled rows
mixed in. Trainings are appended to benchmarks/results/labels.jsonl as they end; --report writes the table from it.
"""

from __future__ import annotations

import argparse
import itertools
from functools import partial
from pathlib import Path
from typing import Any

from movies import (
    ROOT,
    Log,
    encoder_folder,
    gain,
    mean_right,
    movies,
    scored,
    share_of,
    use_threads,
    verdict,
)

from compressor.data import mix
from compressor.data.rows import DataSets
from compressor.distill import match
from compressor.distill.distiller import Distiller
from compressor.model.settings import Student
from compressor.settings import ramp
from compressor.train.finetune import Finetuner
from compressor.train.settings import Train

RESULTS = ROOT / "benchmarks" / "results" / "labels.jsonl"
TABLE = RESULTS.with_suffix(".md")
LABELS: tuple[int | None, ...] = (100, 500, None)
POOLS: tuple[int | None, ...] = (2000, None)
TEACHER_STEPS = {100: 60, 500: 120, None: 600}
TERMS = (match.logits("kl", temperature=ramp(4, 1)), match.labels(weight=0.3), match.hidden("mse", weight=0.5))


def name_of(count: int | None) -> str:
    """How a number of rows is written."""
    return "all" if count is None else str(count)


def teacher_of(data: DataSets, work: Path, *, labels: int | None, seed: int) -> Path:
    """The teacher fine-tuned on those labels; made once."""
    out = work / f"teacher-{name_of(labels)}-{seed}"
    if not (out / "compressor.json").is_file():
        train = Train(steps=TEACHER_STEPS[labels], learning_rate=8e-5, schedule="cosine", batch_tokens=800)
        Finetuner(encoder_folder(), data=data, train=train, seed=seed).fit(out)
    return out


def students(
    data: DataSets, work: Path, *, labels: int | None, unlabelled: int | None, seed: int, steps: int
) -> list[dict[str, Any]]:
    """Scores of the students of one cell; controls are made beside the first pool."""
    few = share_of(data, labels=labels, unlabelled=unlabelled, seed=seed)
    teacher = teacher_of(few, work, labels=labels, seed=seed)
    control = unlabelled == POOLS[0]
    ratio = 0.75 if labels is not None else 0.4
    place = work / f"students-{name_of(labels)}-{name_of(unlabelled)}-{seed}"
    train = Train(steps=steps, learning_rate=2e-4, schedule="linear", batch_tokens=1024)
    made = Distiller(
        teacher,
        Student(layers=3),
        data=few,
        match=TERMS,
        mix=mix.unlabelled(ratio),
        train=train,
        control=control,
        seed=seed,
    ).fit(place / "model", work=place)
    lines = [{"subject": "KD + mix", "unlabelled": name_of(unlabelled), **scored(made, few)}]
    if control:
        lines.append({"subject": "teacher", "unlabelled": "0", **scored(teacher, few)})
        lines.append({"subject": "no KD", "unlabelled": "0", **scored(place / "controls" / "no_kd" / "model", few)})
        lines.append({"subject": "KD", "unlabelled": "0", **scored(place / "controls" / "no_mix" / "model", few)})
    return lines


def table(lines: list[dict[str, Any]]) -> str:
    """The results as markdown; gains are paired on the test rows."""
    out = [
        "| labels | subject | unlabelled | seeds | accuracy % (seeds) | gain over no KD, pp | gain over KD, pp |",
        "|---|---|---|---|---|---|---|",
    ]
    for labels in map(name_of, LABELS):
        rows = [line for line in lines if line["labels"] == labels]
        cells = {(line["subject"], line["unlabelled"]): None for line in rows}
        order = [
            cell
            for cell in (
                ("teacher", "0"),
                ("no KD", "0"),
                ("KD", "0"),
                *(("KD + mix", name_of(pool)) for pool in POOLS),
            )
            if cell in cells
        ]
        found = {cell: [line for line in rows if (line["subject"], line["unlabelled"]) == cell] for cell in order}
        for cell in order:
            each = ", ".join(f"{100 * line['accuracy']:.1f}" for line in found[cell])
            mean = 100 * float(mean_right(found[cell]).mean())
            gains = [_gain(found, cell, ("no KD", "0")), _gain(found, cell, ("KD", "0"))]
            told = " | ".join([labels, *cell, str(len(found[cell])), f"{mean:.1f} ({each})", *gains])
            out.append(f"| {told} |")
    return "\n".join(out) + "\n"


def _gain(found: dict[tuple[str, str], list[dict[str, Any]]], cell: tuple[str, str], before: tuple[str, str]) -> str:
    if cell[0] == "teacher" or cell == before or before not in found or (cell[0] == "no KD"):
        return ""
    seeds = {line["seed"] for line in found[cell]} & {line["seed"] for line in found[before]}
    ours, theirs = ([line for line in found[one] if line["seed"] in seeds] for one in (cell, before))
    if not seeds:
        return ""
    value, low, high = gain(mean_right(theirs), mean_right(ours))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f}), {verdict(low, high)}"


def main() -> None:
    """Train what is missing, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/labels"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    log = Log(RESULTS)
    if not given.report:
        threads, data = use_threads(), movies()
        for seed, labels, unlabelled in itertools.product(range(given.seeds), LABELS, POOLS):
            cell = {"labels": name_of(labels), "pool": name_of(unlabelled), "seed": seed}
            train = partial(students, data, given.work, labels=labels, unlabelled=unlabelled, seed=seed)
            log.once({**cell, "steps": given.steps, "threads": threads}, partial(train, steps=given.steps))
    TABLE.write_text(table(log.lines()), encoding="utf-8")
    print(table(log.lines()))


if __name__ == "__main__":
    main()
