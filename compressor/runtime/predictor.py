"""`load`: any model folder, answering texts. The ONNX path needs numpy, onnxruntime and tokenizers alone."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import numpy as np
import numpy.typing as npt

from compressor.data.encode import Encoded, collate, open_encoder
from compressor.device import EXACT_SUMS, has_vnni
from compressor.errors import InputError
from compressor.model.graph_file import MODEL_FILE as MODEL_FILE
from compressor.model.graph_file import model_file, scaled_by_batch
from compressor.model.manifest import MANIFEST_NAME, Manifest, read_manifest, record_engine, recorded_engine
from compressor.runtime.engine import (
    TENSORRT_FILE,
    Cast,
    DeviceName,
    Engine,
    EngineName,
    Inputs,
    Logits,
    Opened,
    Opening,
)
from compressor.runtime.onnx import OnnxEngine

if TYPE_CHECKING:
    from compressor.data.rows import Text
    from compressor.runtime.torch import TorchEngine

ROWS_PER_BATCH = 32
"""Rows of like length that are answered at once."""
PLACES: dict[Opened, tuple[DeviceName, ...]] = {
    "onnxruntime": ("cpu", "gpu"),
    "torch": ("cpu", "gpu"),
    "openvino": ("cpu",),
    "tensorrt": ("gpu",),
}
"""Where each engine runs."""


def load(
    folder: str | Path,
    *,
    engine: EngineName = "auto",
    threads: int | None = None,
    spinning: bool = True,
    device: DeviceName = "cpu",
    precision: Cast = "fp32",
) -> Predictor:
    """A Predictor for a model folder: of a stage, of `final/`, or saved by transformers.

    Args:
        folder: holds model.onnx or *.safetensors, config.json and tokenizer.json.
        engine: auto takes the engine that was measured to be the fastest (where it is installed), else onnxruntime
            where there is a model.onnx, else torch. fastest measures those that can open the folder here, a few
            seconds each; that of device cpu is recorded in compressor.json, or warned of where it cannot be.
        threads: inside one operator, 1 or more; None takes all that this process may use (torch: leaves its setting).
        spinning: whether onnxruntime's idle threads wait busily; False where other work runs in the process.
        device: gpu is the first NVIDIA device: onnxruntime's CUDA provider, TensorRT or torch.
        precision: in what torch or TensorRT computes an fp32 model on a gpu; onnxruntime computes as its file says.
    Raises: InputError when the folder holds no model that the engine can read, or the engine does not run there.
    """
    folder = Path(folder)
    opening = Opening(threads=threads, spinning=spinning, device=device, precision=precision)
    if engine == "fastest":
        from compressor.runtime.choose import choose_engine

        engine = choose_engine(folder, opening=opening, record=False).engine
        if device == "cpu":
            _keep(folder, engine)
    elif engine == "auto" and device == "cpu":
        engine = _recorded(folder)
    return open_predictor(folder, find_engine(folder, engine), opening)


def open_predictor(folder: Path, engine: Opened, opening: Opening) -> Predictor:
    """The Predictor of one engine; InputError where that does not run at the place asked for."""
    if opening.device not in PLACES[engine]:
        raise InputError(f"engine {engine} runs on device {PLACES[engine][0]} alone (got {opening.device})")
    manifest = read_manifest(folder)
    alone = engine != "tensorrt" and scaled_by_batch(folder)  # TensorRT's scales are fixed
    return Predictor(
        folder,
        manifest=manifest,
        engine=ENGINES[engine](folder, opening),
        rows_per_batch=1 if alone else ROWS_PER_BATCH,
    )


def find_engine(folder: Path, engine: EngineName = "auto") -> Opened:
    """The engine that opens the folder, for auto by what it holds; InputError says what is missing."""
    if engine not in get_args(EngineName):
        raise InputError(f"engine must be one of {', '.join(get_args(EngineName))} (got {engine!r})")
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder of a model, such as runs/NAME/final")
    if engine == "fastest":
        raise InputError("engine fastest is known once it was measured; use load or choose_engine")
    has_onnx, has_torch = model_file(folder) is not None, any(folder.glob("*.safetensors"))
    if engine == "tensorrt" and (has_onnx or (folder / TENSORRT_FILE).is_file()):
        return engine
    if engine != "torch" and has_onnx:
        return "openvino" if engine == "openvino" else "onnxruntime"
    if engine in ("auto", "torch") and has_torch:
        return "torch"
    if has_onnx or has_torch:
        missing, advice = ("*.safetensors", "torch cannot read ONNX") if has_onnx else (MODEL_FILE, "export it first")
        raise InputError(f"{folder} holds no {missing}, which engine {engine} needs; {advice}")
    pickled = any(folder.glob("pytorch_model*.bin"))
    reason = "only a pickle, which is never read: save it as safetensors" if pickled else "neither"
    raise InputError(f"{folder} must hold {MODEL_FILE} or *.safetensors (found {reason})")


def _keep(folder: Path, engine: Opened) -> None:
    """The engine, recorded for the next `load`; a warning where the folder is not one to write into."""
    try:
        record_engine(folder, engine)
    except InputError as error:
        warnings.warn(f"engine {engine} is the fastest here and will be measured again: {error}", stacklevel=3)


def _recorded(folder: Path) -> EngineName:
    """The engine that the folder says was measured to be the fastest, where it can be opened on a CPU; else auto."""
    name = recorded_engine(folder)
    if name is None or name not in get_args(Opened) or "cpu" not in PLACES[cast(Opened, name)]:
        return "auto"
    if name == "openvino" and importlib.util.find_spec("openvino") is None:
        warnings.warn(
            f"{folder} was measured to be the fastest in engine openvino, which is not installed, so another answers; "
            "run pip install 'bert-compressor[openvino]'",
            stacklevel=3,
        )
        return "auto"
    return cast(EngineName, name)


class Predictor:
    """A model that answers texts, whatever engine runs it. Answers keep the order of the texts.

    A model whose activations are scaled by what is in the batch (dynamic INT8) is asked one row at a time: only then
    does a row's answer not depend on its neighbours, and equals that of predict.py.
    """

    def __init__(self, folder: Path, *, manifest: Manifest, engine: Engine, rows_per_batch: int) -> None:
        self.folder = folder
        self.manifest = manifest
        self.runner = engine
        self.rows_per_batch = rows_per_batch
        self.encoder = open_encoder(folder, manifest.max_tokens)

    @property
    def engine(self) -> str:
        """`onnxruntime`, `torch`, `openvino` or `tensorrt`."""
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
        if self.engine != "torch":
            raise InputError(
                f"features need engine 'torch' (got {self.engine}, {self.folder}); load a safetensors folder"
            )
        runner = cast("TorchEngine", self.runner)
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


def _open_onnx(folder: Path, opening: Opening) -> Engine:
    if opening.device == "gpu":
        from compressor.runtime.providers import open_cuda

        return open_cuda(folder, opening)
    precise = opening.precise
    if precise is None:
        precise = read_manifest(folder).isa in EXACT_SUMS and not has_vnni()  # its weights would saturate here
    file = model_file(folder) or folder / MODEL_FILE
    return OnnxEngine(file, threads=opening.threads, spinning=opening.spinning, precise=precise)


def _open_torch(folder: Path, opening: Opening) -> Engine:
    from compressor.device import open_device
    from compressor.runtime.torch import TorchEngine

    device = open_device(opening.device)
    return TorchEngine(folder, threads=opening.threads, device=device, precision=opening.precision)


def _open_openvino(folder: Path, opening: Opening) -> Engine:
    from compressor.runtime.openvino import OpenVinoEngine

    return OpenVinoEngine(model_file(folder) or folder / MODEL_FILE, threads=opening.threads)


def _open_tensorrt(folder: Path, opening: Opening) -> Engine:
    from compressor.runtime.providers import open_tensorrt

    return open_tensorrt(folder, opening)


ENGINES: dict[Opened, Callable[[Path, Opening], Engine]] = {
    "onnxruntime": _open_onnx,
    "torch": _open_torch,
    "openvino": _open_openvino,
    "tensorrt": _open_tensorrt,
}
