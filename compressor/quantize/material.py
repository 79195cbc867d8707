"""What every scheme is given: the fp32 model in both forms, the rows to calibrate on, and for which processor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.data.rows import Text
from compressor.errors import InputError
from compressor.quantize.settings import Calibrate, RunsOn, Smooth
from compressor.runtime.onnx import Inputs
from compressor.stage import Decision, Progress, silent

if TYPE_CHECKING:
    from onnx import ModelProto


def unheard(_decision: Decision) -> None:
    """A `decide` that nobody listens to."""


@dataclass(frozen=True)
class Material:
    """What a scheme may use. No scheme changes `folder` or `torch_folder`."""

    folder: Path
    """The fp32 model, ready to deploy: fused model.onnx, tokenizer.json, config.json, compressor.json."""
    torch_folder: Path | None
    """The safetensors folder it came from; None where only ONNX was given."""
    raw: Callable[[], ModelProto]
    """The graph as traced, with each layer's head count written in, not fused; made on first use, a copy at each call.
    Raises InputError where `torch_folder` is None."""
    batches: Callable[[], Iterator[Inputs]]
    """The calibration rows afresh, one row a batch as they are served: name to int64 (1, tokens)."""
    reduce_range: bool
    """Weights whose products fit into sums of 16 bits, for processors that have no wider ones."""
    seed: int
    work: Path
    """A folder for temporary files."""
    progress: Progress = silent
    decide: Callable[[Decision], None] = unheard
    """Told what a scheme chose by itself."""
    smooth: Smooth | None = None
    """Smoothing asked for; None lets the scheme choose."""
    data: Any = None
    """data.rows.DataSets, for a scheme that trains."""
    teacher: Path | None = None
    """Model folder that teaches a scheme that trains; None takes the fp32 model itself."""
    device: str = "cpu"
    """Where a scheme that trains computes: `cpu` or `gpu`."""
    target: RunsOn = "cpu"
    """What will run the model; `tensorrt` takes activations in s8 around zero alone."""
    smoke: bool = False
    """True where weights are random and answers prove nothing."""


def calibration_texts(data: Any, settings: Calibrate, *, seed: int) -> list[Text]:
    """Rows of train, of the unlabelled pool or of both, drawn without replacement, the same for one seed.

    Args:
        data: data.rows.DataSets.
    Raises: InputError where there is no such row.
    """
    parts = {"train": (data.train,), "unlabelled": (data.unlabelled,), "both": (data.train, data.unlabelled)}
    source = settings.source or ("train" if len(set(data.train.texts)) > 1 else "both")
    texts: list[Text] = [text for rows in parts[source] for text in rows.texts]
    if not texts:
        raise InputError(
            f"quantize.calibrate.from is {source}, and the data holds no such rows; write from: "
            f"{'train' if source == 'unlabelled' else 'both'}, or give rows in `data`"
        )
    order = np.random.default_rng([seed, 8]).permutation(len(texts))[: settings.rows]
    return [texts[int(place)] for place in order]
