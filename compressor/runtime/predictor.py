"""`load`: any model folder, answering texts. The ONNX path needs numpy, onnxruntime and tokenizers alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from compressor.data.encode import Encoded, collate, open_encoder
from compressor.errors import InputError
from compressor.model.manifest import MANIFEST_NAME, Manifest, read_manifest
from compressor.runtime.onnx import Inputs, Logits, OnnxEngine

if TYPE_CHECKING:
    from compressor.data.rows import Text
    from compressor.runtime.torch import TorchEngine

EngineName = Literal["auto", "onnxruntime", "torch"]
MODEL_FILE = "model.onnx"
ROWS_PER_BATCH = 32
"""Rows of like length that are answered at once."""


def load(
    folder: str | Path, *, engine: EngineName = "auto", threads: int | None = None, spinning: bool = True
) -> Predictor:
    """A Predictor for a model folder: of a stage, of `final/`, or saved by transformers.

    Args:
        folder: holds model.onnx or *.safetensors, config.json and tokenizer.json.
        engine: auto takes onnxruntime where there is a model.onnx, else torch.
        threads: inside one operator; None takes all that this process may use (torch: leaves its setting).
        spinning: whether onnxruntime's idle threads wait busily; False where other work runs in the process.
    Raises: InputError when the folder holds no model that the engine can read.
    """
    folder = Path(folder)
    chosen = find_engine(folder, engine)
    manifest = read_manifest(folder)
    return Predictor(
        folder,
        manifest=manifest,
        engine=ENGINES[chosen](folder, threads, spinning),
        rows_per_batch=1 if manifest.precision == "int8" else ROWS_PER_BATCH,
    )


def find_engine(folder: Path, engine: EngineName = "auto") -> Literal["onnxruntime", "torch"]:
    """The engine that opens the folder; InputError says what is missing."""
    if engine not in get_args(EngineName):
        raise InputError(f"engine must be one of {', '.join(get_args(EngineName))} (got {engine!r})")
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder of a model, such as runs/NAME/final")
    has_onnx, has_torch = (folder / MODEL_FILE).is_file(), any(folder.glob("*.safetensors"))
    if engine != "torch" and has_onnx:
        return "onnxruntime"
    if engine != "onnxruntime" and has_torch:
        return "torch"
    if has_onnx or has_torch:
        missing, advice = ("*.safetensors", "torch cannot read ONNX") if has_onnx else (MODEL_FILE, "export it first")
        raise InputError(f"{folder} holds no {missing}, which engine {engine} needs; {advice}")
    pickled = any(folder.glob("pytorch_model*.bin"))
    reason = "only a pickle, which is never read: save it as safetensors" if pickled else "neither"
    raise InputError(f"{folder} must hold {MODEL_FILE} or *.safetensors (found {reason})")


class Predictor:
    """A model that answers texts, whatever engine runs it. Answers keep the order of the texts.

    An INT8 model is asked one row at a time: its activations are scaled by what is in the batch, so only then does a
    row's answer not depend on its neighbours, and equals that of predict.py.
    """

    def __init__(
        self, folder: Path, *, manifest: Manifest, engine: OnnxEngine | TorchEngine, rows_per_batch: int
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.runner = engine
        self.rows_per_batch = rows_per_batch
        self.encoder = open_encoder(folder, manifest.max_tokens)

    @property
    def engine(self) -> str:
        """`onnxruntime` or `torch`."""
        return self.runner.name

    def predict(self, texts: Sequence[Text]) -> list[str]:
        """The label of each text, or pair of texts."""
        return [self.manifest.labels[index] for index in self.logits(texts).argmax(axis=1)]

    def logits(self, texts: Sequence[Text]) -> Logits:
        """Shape (rows, classes), float32, before softmax; classes in the order of `manifest.labels`."""
        return self._ask(texts, self.runner.logits, width=len(self.manifest.labels))

    def features(self, texts: Sequence[Text], *, layer: int) -> npt.NDArray[np.float32]:
        """Hidden states of each row's first token after `layer` layers (0: embeddings), shape (rows, hidden).

        Raises: InputError unless the engine is torch: an exported graph answers logits alone.
        """
        if isinstance(self.runner, OnnxEngine):
            raise InputError(
                f"features need engine 'torch' (got onnxruntime, {self.folder}); load a safetensors folder"
            )
        runner = self.runner
        return self._ask(texts, lambda inputs: runner.features(inputs, layer), width=self.manifest.shapes.hidden)

    def _ask(
        self, texts: Sequence[Text], ask: Callable[[Inputs], npt.NDArray[np.float32]], *, width: int
    ) -> npt.NDArray[np.float32]:
        if isinstance(texts, str):
            raise InputError("texts must be a list of texts (got one text); put it in a list")
        answers = np.zeros((len(texts), width), dtype=np.float32)
        if not len(texts):
            return answers
        self._check_columns(texts)
        encoded = self.encoder.encode(list(texts))
        for indices in by_length(encoded, self.rows_per_batch):
            answers[indices] = ask(collate(encoded, indices, self.encoder.pad_id))
        return answers

    def _check_columns(self, texts: Sequence[Text]) -> None:
        """InputError for a pair where the model reads one text, or the reverse; a stock folder does not say which."""
        if not (self.folder / MANIFEST_NAME).is_file():
            return
        columns = self.manifest.text
        for place, text in enumerate(texts):
            if isinstance(text, tuple | list) != (len(columns) == 2):
                wanted = f"two texts ({' and '.join(columns)})" if len(columns) == 2 else "one text"
                raise InputError(f"{self.folder} reads {wanted} a row: row {place} (from 0) is not that: {text!r:.60}")


def by_length(encoded: Encoded, rows: int) -> Iterator[list[int]]:
    """Row numbers in batches of at most `rows`, longest rows last, so that little is padded."""
    order = np.argsort(encoded.lengths, kind="stable")
    for start in range(0, len(order), rows):
        yield [int(index) for index in order[start : start + rows]]


def _open_onnx(folder: Path, threads: int | None, spinning: bool) -> OnnxEngine:
    return OnnxEngine(folder / MODEL_FILE, threads=threads, spinning=spinning)


def _open_torch(folder: Path, threads: int | None, _spinning: bool) -> Any:
    from compressor.runtime.torch import TorchEngine

    return TorchEngine(folder, threads=threads)


ENGINES: dict[Literal["onnxruntime", "torch"], Callable[[Path, int | None, bool], Any]] = {
    "onnxruntime": _open_onnx,
    "torch": _open_torch,
}
