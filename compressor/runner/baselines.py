"""The simple models that a report holds the deployed one against."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from compressor.model.digest import model_digest
from compressor.runner.chain import Chain, rows_digests, stages_of
from compressor.runner.directory import read_lines
from compressor.runner.keys import digest, library_versions
from compressor.stage import Progress
from compressor.stages.distill import Distill

if TYPE_CHECKING:
    from compressor.evaluate.settings import Budget
    from compressor.report.model import Report
    from compressor.report.small_model import Small
    from compressor.report.subjects import Subject


def with_baselines(
    report: Report,
    chain: Chain,
    subjects: Sequence[Subject],
    best: str,
    *,
    budget: Budget | None,
    progress: Progress,
) -> Report:
    """The report with what the recipe's baselines reach; one that cannot be made becomes a doubt.

    The small model is kept in the run under `baselines/`, by all that decides it, so that it is trained once.
    """
    from compressor.report.baselines import Held, make_baselines
    from compressor.report.compare import scored_rows

    names = chain.recipe.benchmark.baselines
    if not names:
        return report
    texts, references, _ = scored_rows(chain.data)
    logits = {one.name: one.logits for one in subjects if one.engine == "onnxruntime" and one.logits is not None}
    home = chain.directory.root / "baselines"
    work = home / _key(chain)[:16]
    for old in [folder for folder in home.glob("*") if folder != work]:
        shutil.rmtree(old, ignore_errors=True)
    found = make_baselines(
        names,
        chain.data,
        chain.folder("teacher") / "model",
        Held(texts=texts, references=references, logits=logits, deployed=best, budget=budget),
        work=work,
        small=_small(chain),
        threads=chain.threads,
        device=chain.device,
        seed=chain.recipe.seed,
        timing=not chain.smoke,
        smoke=chain.smoke,
        progress=progress,
    )
    return report.model_copy(update={"baselines": found.made, "doubts": (*report.doubts, *found.doubts)})


def _small(chain: Chain) -> Small:
    """The student that a distill stage trained without a teacher; else what one is to be trained of, and how long."""
    from compressor.report.small_model import Small

    stages = [stage for stage in stages_of(chain.recipe) if isinstance(stage, Distill) and stage.id in chain.keys]
    for stage in stages:
        home = chain.directory.controls(stage.id).get("no_kd")
        if home is not None:
            return Small(folder=home / "model")
    start = chain.source if chain.recipe.teacher.finetune is not None else None
    if not stages:
        return Small(start=start)
    lines = read_lines(chain.directory.stage(stages[0].id) / "steps.jsonl")
    steps = max((int(line["step"]) for line in lines), default=None)
    return Small(student=stages[0].student, start=start, steps=steps)


def _key(chain: Chain) -> str:
    """Of what decides the small model."""
    small = _small(chain)
    student = small.student
    return digest(
        {
            "start": model_digest(chain.source),
            "steps": small.steps,
            "rows": [chain.data.train.digest(), rows_digests(chain.data)["read as"]],
            "device": chain.device,
            "student": student.model_dump(mode="json") if student else None,
            "seed": chain.recipe.seed,
            "threads": chain.threads,
            "smoke": chain.smoke,
            "versions": library_versions(),
        }
    )
