"""One change at a time: what each `match` term, layer map, start and mix option is worth on the movie snippets.

    python benchmarks/ablation.py [--work DIR] [--seeds N] [--steps N] [--only GROUP] [--report]

500 labelled rows, 2,000 unlabelled ones, a 6-layer MiniLM teacher fine-tuned on the labels, students of 3 layers. Every
group has a reference of its own, named first; gains are paired on the 2,000 test rows and averaged over the seeds.
Trainings are appended to benchmarks/results/ablation.jsonl as they end; --report writes the table from it, ablation.md.
"""

from __future__ import annotations

import argparse
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from labels import teacher_of
from movies import ROOT, Log, encoder_folder, gain, mean_right, movies, scored, share_of, use_threads, verdict

from compressor.data import mix
from compressor.data.rows import DataSets
from compressor.distill import match
from compressor.distill.distiller import Distiller
from compressor.model.settings import Student
from compressor.settings import ramp
from compressor.train.settings import Train

RESULTS = ROOT / "benchmarks" / "results" / "ablation.jsonl"
TABLE = RESULTS.with_suffix(".md")
LABELS, POOL = 500, 2000

KL, CE = match.logits("kl", temperature=ramp(4, 1)), match.labels(weight=0.3)
MIX = mix.unlabelled(0.75)


def body(term: Any) -> dict[str, Any]:
    """Answers, labels and one more term."""
    return {"match": (KL, CE, term)}


def layers(name: str) -> dict[str, Any]:
    """Hidden states paired by a map."""
    return body(match.hidden("mse", map=name, weight=0.5))


def start(**settings: Any) -> dict[str, Any]:
    """A student of another shape or start."""
    return {"student": {"layers": 3, **settings}}


def mixed(ratio: Any = 0.75, **settings: Any) -> dict[str, Any]:
    """Another mix."""
    return {"mix": mix.unlabelled(ratio, **settings)}


GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "logits": {
        "kl, temperature 4 to 1": {"match": (KL,)},
        "kl, temperature 1": {"match": (match.logits("kl"),)},
        "ce": {"match": (match.logits("ce"),)},
        "mse": {"match": (match.logits("mse"),)},
        "decoupled": {"match": (match.logits("decoupled", temperature=ramp(4, 1)),)},
        "gce": {"match": (match.logits("gce"),)},
    },
    "labels": {
        "no labels": {"match": (KL,)},
        "ce": {"match": (KL, CE)},
        "focal": {"match": (KL, match.labels("focal", weight=0.3))},
        "smoothing 0.1": {"match": (KL, match.labels("ce", smoothing=0.1, weight=0.3))},
        "gce": {"match": (KL, match.labels("gce", weight=0.3))},
    },
    "body": {
        "no body term": {"match": (KL, CE)},
        "hidden mse": body(match.hidden("mse", weight=0.5)),
        "hidden cosine": body(match.hidden("cosine", weight=0.5)),
        "hidden pkd": body(match.hidden("pkd", weight=0.5)),
        "hidden mmd": body(match.hidden("mmd", weight="auto")),
        "hidden gram": body(match.hidden("gram", weight="auto")),
        "attention kl": body(match.attention("kl", weight=0.5)),
        "attention mse": body(match.attention("mse", weight="auto")),
        "relations": body(match.relations(weight=0.5)),
        "embeddings": body(match.embeddings(weight=0.5)),
        "hidden mse, weight auto": body(match.hidden("mse", weight="auto")),
        "hidden mse and relations": {"match": (KL, CE, match.hidden("mse", weight=0.5), match.relations(weight=0.5))},
    },
    "map": {
        "uniform": layers("uniform"),
        "first": layers("first"),
        "last": layers("last"),
        "random": layers("random"),
        "attention": layers("attention"),
        "nearest": layers("nearest"),
        "explicit 1:1 3:2 6:3": layers("1:1 3:2 6:3"),
    },
    "start": {
        "uniform": start(),
        "first": start(init={"layers": "first"}),
        "last": start(init={"layers": "last"}),
        "importance": start(init={"layers": "importance"}),
        "encoder before fine-tuning": start(init={"from": "ENCODER"}),
    },
    "width": {
        "hidden 192 by norm": start(hidden=192, heads=6, ffn=768),
        "hidden 192 by importance": start(hidden=192, heads=6, ffn=768, init={"width": "importance"}),
        "hidden 192 by svd": start(hidden=192, heads=6, ffn=768, init={"width": "svd"}),
    },
    "mix": {
        "ratio 0.75": mixed(),
        "no unlabelled rows": {"mix": {"unlabelled": None}},
        "ratio 0.5": mixed(0.5),
        "ratio 0.5 to 0.9": mixed(ramp(0.5, 0.9)),
        "confidence 0.8": mixed(keep={"confidence": 0.8}),
        "weighed by confidence": mixed(keep={"weigh": True}),
        "balanced classes": mixed(keep={"balance": True}),
        "mask 0.1": mixed(augment={"mask": 0.1}),
        "mask 0.1, 4 stored views": mixed(augment={"mask": 0.1, "views": 4}),
        "delete 0.1": mixed(augment={"delete": 0.1}),
        "ngram 0.2": mixed(augment={"ngram": 0.2}),
        "mixup 0.3": mixed(augment={"mixup": 0.3}),
    },
}
BASE: dict[str, Any] = {"student": {"layers": 3}, "match": (KL, CE, match.hidden("mse", weight=0.5)), "mix": MIX}


def trained(change: dict[str, Any], data: DataSets, work: Path, *, seed: int, steps: int) -> list[dict[str, Any]]:
    """Score of the student of one change, and its score before training."""
    few = share_of(data, labels=LABELS, unlabelled=POOL, seed=seed)
    settings = {**BASE, **change}
    shape = dict(settings["student"])
    if shape.get("init", {}).get("from") == "ENCODER":
        shape["init"] = {**shape["init"], "from": str(encoder_folder())}
    told: dict[str, Any] = {}
    place = work / "student"
    shutil.rmtree(place, ignore_errors=True)
    made = Distiller(
        teacher_of(few, work, labels=LABELS, seed=seed),
        Student.model_validate(shape),
        data=few,
        match=settings["match"],
        mix=settings["mix"],
        train=Train(steps=steps, learning_rate=2e-4, schedule="linear", batch_tokens=1024),
        seed=seed,
        decide=lambda decision: told.update({decision.kind: decision.chosen}),
    ).fit(place / "model", work=place, cache_at=work / f"cache-{seed}")
    return [{"subject": "student", "start": told.get("start"), **scored(made, few)}]


def table(lines: list[dict[str, Any]]) -> str:
    """The results as markdown."""
    out = ["| group | change | seeds | before training % | accuracy % (seeds) | gain over the first, pp | |"]
    out.append("|---|---|---|---|---|---|---|")
    for group, changes in GROUPS.items():
        first = None
        for name in changes:
            found = [line for line in lines if (line["group"], line["change"]) == (group, name)]
            if not found:
                continue
            right = mean_right(found)
            starts = [100 * line["start"] for line in found if line["start"] is not None]
            each = ", ".join(f"{100 * line['accuracy']:.1f}" for line in found)
            before = f"{sum(starts) / len(starts):.1f}" if starts else ""
            value, low, high = gain(first, right) if first is not None else (0.0, 0.0, 0.0)
            told = (
                f"{value:+.1f} ({low:+.1f} to {high:+.1f}) | {verdict(low, high)}"
                if first is not None
                else "reference |"
            )
            out.append(f"| {group} | {name} | {len(found)} | {before} | {100 * right.mean():.1f} ({each}) | {told} |")
            first = right if first is None else first
    return "\n".join(out) + "\n"


def main() -> None:
    """Train what is missing, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/ablation"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", choices=sorted(GROUPS))
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    log = Log(RESULTS)
    if not given.report:
        threads, data = use_threads(), movies()
        for seed in range(given.seeds):
            for group, name in [(group, name) for group, changes in GROUPS.items() for name in changes]:
                if given.only not in (None, group):
                    continue
                key = {"group": group, "change": name, "seed": seed, "steps": given.steps, "threads": threads}
                log.once(key, partial(trained, GROUPS[group][name], data, given.work, seed=seed, steps=given.steps))
    TABLE.write_text(table(log.lines()), encoding="utf-8")
    print(table(log.lines()))


if __name__ == "__main__":
    main()
