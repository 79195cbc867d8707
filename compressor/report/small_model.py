"""A small encoder fine-tuned on the labels alone: what a student is worth without a teacher's answers."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compressor.data.encode import open_encoder
from compressor.data.labels import require_labels
from compressor.data.rows import DataSets, Text
from compressor.device import seed_all
from compressor.export.exporter import Exporter
from compressor.model.encoders import load_model, save_model
from compressor.model.settings import Init, Student
from compressor.model.student import make_student
from compressor.report.linear import Simple
from compressor.runtime.predictor import MODEL_FILE, load
from compressor.stage import Progress, silent
from compressor.train.finetune import Finetuner, manifest_of, probe_inputs
from compressor.train.settings import Train

LAYERS = 2
"""Of the small model where no student says its shape."""
MOST_STEPS, EPOCHS, ROWS = 300, 3, 32
"""Its training: at most so many steps, so many passes over the labelled rows, so many of them in a batch."""
LEARNING_RATE = 1e-4
"""Where small students of BERT learn well; twice the default for a whole one."""


@dataclass(frozen=True)
class Small:
    """A small model that is there already, or how to make one."""

    folder: Path | None = None
    """A model of the student's shape trained on labels alone, as a stage's `controls/no_kd/model`, or its export with a
    model.onnx; None makes one."""
    student: Student | None = field(default=None)
    """Shape of the one that is made; two layers of its start where None. Its `init` is not looked at."""
    start: Path | None = None
    """Folder of the model whose weights and tokenizer it starts from; the teacher where None."""
    steps: int | None = None
    """Optimizer steps that the student had; the small one has as many, but at most 300 and three epochs."""


def small_answers(
    small: Small,
    data: DataSets,
    teacher: Path,
    *,
    work: Path,
    threads: int | None = None,
    seed: int = 17,
    device: str = "cpu",
    smoke: bool = False,
    progress: Progress = silent,
) -> Simple:
    """The small model on onnxruntime, fine-tuned on the labelled train rows in `work` unless it is there.

    A training that `work` holds already is not repeated.

    Raises: InputError where it has other labels than the rows, or the start is no encoder whose layers can be taken.
    """
    if small.folder is None:
        folder, what = _trained(small, data, teacher, work, seed, device, smoke, progress)
    else:
        folder, what = small.folder, "a model of the student's shape, fine-tuned on the labels alone"
    if not (folder / MODEL_FILE).is_file():
        shutil.rmtree(work / "onnx", ignore_errors=True)
        folder = Path(Exporter(folder, data=data, progress=progress).export(work / "onnx"))
    predictor = load(folder, threads=threads, spinning=False)
    require_labels(folder, predictor.manifest.labels, data.labels)

    def answer(texts: Sequence[Text]) -> NDArray[np.int64]:
        return np.asarray(predictor.logits(list(texts)).argmax(-1), dtype=np.int64)

    size = sum(path.stat().st_size for path in folder.glob(f"{MODEL_FILE}*"))
    return Simple(what, answer, size)


def _trained(
    small: Small,
    data: DataSets,
    teacher: Path,
    work: Path,
    seed: int,
    device: str,
    smoke: bool,
    progress: Progress,
) -> tuple[Path, str]:
    """Folder of the fine-tuned model, and what it is in words."""
    source = teacher if small.start is None else small.start
    seed_all(seed)
    whole = load_model(source, labels=data.labels, other_names="new head")
    layers = min(LAYERS, int(whole.config.num_hidden_layers))
    shape = Student(layers=layers) if small.student is None else small.student.model_copy(update={"init": Init()})
    model = make_student(whole, shape, seed=seed)
    probe = probe_inputs(data.train, open_encoder(source, data.max_tokens))
    start = save_model(model, work / "start", tokenizer_from=source, manifest=manifest_of(data, model), probe=probe)
    rows = sum(label is not None for label in data.train.labels)
    steps = max(1, min(small.steps or MOST_STEPS, MOST_STEPS, math.ceil(EPOCHS * rows / ROWS)))
    trained = Finetuner(
        start,
        data=data,
        train=Train(steps=steps, learning_rate=LEARNING_RATE, batch_rows=ROWS),
        seed=seed,
        device=device,
        smoke=smoke,
        progress=_renamed(progress),
    ).fit(work / "model", work=work)
    origin = "the teacher's" if small.start is None else "the base encoder's"
    count = int(model.config.num_hidden_layers)
    return trained, f"{count} of {origin} layers, fine-tuned on the labels alone for {steps} steps"


def _renamed(progress: Progress) -> Callable[[str, int, int | None], None]:
    """Progress that says which training it is."""
    return lambda _what, done, total: progress("baseline small", done, total)
