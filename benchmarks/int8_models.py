"""The checkpoints of the INT8 benchmark, each made once: MiniLM of 6 layers, fine-tuned, its students of 3 and 2."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from movies import encoder_folder

from compressor.data.rows import DataSets
from compressor.data.settings import Mix
from compressor.distill import match
from compressor.distill.distiller import Distiller
from compressor.settings import ramp
from compressor.train.finetune import Finetuner
from compressor.train.settings import Train

TEACHER_LAYERS = 6
LAYERS = (TEACHER_LAYERS, 3, 2)
TEACHER = Train(epochs=3, learning_rate=8e-5, schedule="cosine", warmup=0.1, batch_tokens=800)
"""As in recipes/teacher-movies.yaml."""
STUDENT = Train(epochs=4, learning_rate=2e-4, schedule="cosine", warmup=0.1, batch_tokens=1024)
TERMS = (match.logits("kl", temperature=ramp(4, 1)), match.labels(weight=0.3), match.hidden("mse", weight=0.5))


def place_of(work: Path, data: str, layers: int, fold: int | None = None) -> Path:
    """Where everything about one model lies."""
    return work / (data if fold is None else f"{data}-fold-{fold}") / f"layers-{layers}"


def checkpoint(
    rows: DataSets, *, work: Path, data: str, layers: int, fold: int | None = None, ready: Mapping[int, Path] | None
) -> Path:
    """The folder with fp32 safetensors; a stopped training goes on from where it was.

    Args:
        ready: layers to a folder that is taken instead of a training.
    """
    out = place_of(work, data, layers, fold) / "checkpoint"
    if (out / "compressor.json").is_file():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    if ready and layers in ready:
        return Path(shutil.copytree(ready[layers], out, dirs_exist_ok=True))
    if layers == TEACHER_LAYERS:
        return Finetuner(encoder_folder(), data=rows, train=TEACHER, progress=say).fit(out)
    teacher = checkpoint(rows, work=work, data=data, layers=TEACHER_LAYERS, fold=fold, ready=ready)
    student = Distiller(
        teacher,
        {"layers": layers},
        data=rows,
        match=TERMS,
        mix=Mix(unlabelled=None),
        train=STUDENT,
        progress=say,
    )
    return student.fit(out)


def say(what: str, done: int, total: int | None) -> None:
    """A line at each tenth."""
    if total and done % max(1, total // 10) == 0:
        print(f"{what} {done}/{total}", flush=True)
