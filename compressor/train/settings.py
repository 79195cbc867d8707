"""The one schema of training, used wherever a recipe says `train`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compressor.settings import Integer, Real, Settings, Share


class EarlyStop(Settings):
    """When to stop before the last epoch; the best epoch's weights are kept."""

    patience: Annotated[Integer, Field(ge=1)] = 2
    """Epochs without a better score on `select` before training stops."""


class Train(Settings):
    """How long and how fast to train."""

    epochs: Annotated[Real, Field(gt=0)] | None = None
    """Passes over the labelled rows; 3 unless `steps` is given. A fraction stops within an epoch."""
    steps: Annotated[Integer, Field(ge=1)] | None = None
    """Optimizer steps; instead of `epochs`."""
    learning_rate: Annotated[Real, Field(gt=0)] = 5e-5
    """Peak step size of AdamW; 5e-5 is BERT's usual choice, small students like 1e-4 to 3e-4."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the learning rate falls to zero after the warm-up."""
    warmup: Share = 0.1
    """Share of the steps in which the learning rate rises from zero."""
    batch_tokens: Annotated[Integer, Field(ge=8)] | None = None
    """Tokens a batch, padding included; rows of similar length share a batch. 1024 unless `batch_rows` is given."""
    batch_rows: Annotated[Integer, Field(ge=1)] | None = None
    """Rows a batch; instead of `batch_tokens`."""
    clip: Annotated[Real, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient; null switches clipping off."""
    weight_decay: Annotated[Real, Field(ge=0)] = 0.01
    """Decoupled decay of matrices; biases and layer norms have none."""
    dropout: Share | None = None
    """Share of the activations dropped while training; the model's own config decides unless given."""
    average: Annotated[Real, Field(gt=0, lt=1)] | None = None
    """Decay of the exponential moving average of the weights, such as 0.999; null keeps the last weights."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the matrix products; auto takes bf16 where the device computes it natively, else fp32."""
    early_stop: EarlyStop | None = None
    """Score on `select` after each epoch and stop when it no longer rises; null trains to the end."""
    checkpoint: Annotated[Integer, Field(ge=1)] = 200
    """Steps between checkpoints; an interrupted run repeats at most so many."""

    def model_post_init(self, _context: object) -> None:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("takes epochs or steps, not both")
        if self.batch_tokens is not None and self.batch_rows is not None:
            raise ValueError("takes batch_tokens or batch_rows, not both")


class Finetune(Settings):
    """How a teacher is made from a pretrained encoder."""

    train: Train = Train()
    """Length and speed of training."""
    loss: Literal["ce", "focal", "gce"] = "ce"
    """Cross-entropy; focal looks less at rows that are right already; gce resists wrong labels."""
