"""A model folder as fused fp32 ONNX, proven to answer as PyTorch does, and as a folder to deploy."""

from __future__ import annotations

import random
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from compressor.data.encode import Encoded, collate, open_encoder
from compressor.data.rows import Text, open_data
from compressor.errors import InputError
from compressor.export.audit import Audit, audit
from compressor.export.folder import deploy, require_empty
from compressor.export.fusion import fuse, pin_heads
from compressor.export.halves import to_half
from compressor.export.layout import arrange
from compressor.export.parity import TOLERANCES, Difference, require_alike
from compressor.export.settings import ExportPrecision, Layout, Server, served_twice
from compressor.model.encoders import load_model
from compressor.model.graph_file import (
    MODEL_FILE,
    folder_precision,
    has_stored_weights,
    model_file,
    open_graph,
    require_bert,
)
from compressor.model.manifest import MANIFEST_NAME, Manifest, Precision, read_manifest
from compressor.model.parts import shapes
from compressor.runtime.onnx import Inputs, Logits, OnnxEngine
from compressor.runtime.predictor import by_length, find_engine, load
from compressor.stage import Decision, Progress, silent

OPSET = 17
PROBE_ROWS = 32
"""Real rows on which the forms of the model are compared."""
SAMPLE_TEXTS = (
    "A warm, funny and honest film that never overstays its welcome.",
    "Dull.",
    "It took three phone calls and two weeks before anybody at the company was willing to say what had gone wrong.",
    "Das Frühstück war köstlich - 美味しかった, très bon!",
    "",
)
"""Compared on where no rows are given."""


@dataclass(frozen=True)
class Parity:
    """Proof that the ONNX file answers as PyTorch does, on real rows in batches of 1, 3 and more."""

    raw: Difference
    """The graph as traced, against PyTorch."""
    fused: Difference
    """The graph as written, against PyTorch."""
    audit: Audit
    logits: Logits
    """PyTorch's own, shape (rows, classes)."""


def export_onnx(folder: Path, out: Path, *, texts: Sequence[Text], progress: Progress = silent) -> Parity:
    """`out`, a fused fp32 ONNX file with free batch and length, and how close it is to PyTorch on `texts`.

    The bytes depend on the model and the library versions alone, not on the texts or the process.

    Args:
        folder: model folder with safetensors.
        out: file to write; its folder is made.
        texts: rows to compare on; the first 32 are used.
    Raises: StageError when a graph answers otherwise than PyTorch, and then writes nothing.
    """
    manifest, probe = read_manifest(folder), list(texts)[:PROBE_ROWS] or list(SAMPLE_TEXTS)
    encoder = open_encoder(folder, manifest.max_tokens)
    encoded = encoder.encode(probe)
    model = load_model(folder, attention="eager").eval()
    progress("export", 0, 4)
    reference = _answer(encoded, encoder.pad_id, lambda inputs: _torch_logits(model, inputs))
    traced = traced_for_fusion(model)
    progress("export", 1, 4)
    graph = traced.SerializeToString(deterministic=True)
    raw = _require(graph, encoded, encoder.pad_id, reference, f"the ONNX graph traced from {folder}")
    progress("export", 2, 4)
    fused = fuse(traced)
    graph = fused.SerializeToString(deterministic=True)
    progress("export", 3, 4)
    close = _require(graph, encoded, encoder.pad_id, reference, f"the fused ONNX graph of {folder}")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    partial.write_bytes(graph)
    partial.replace(out)
    progress("export", 4, 4)
    counted = audit(fused, shapes(model), model_type=str(model.config.model_type))
    return Parity(raw=raw, fused=close, audit=counted, logits=reference)


def traced_for_fusion(model: Any) -> onnx.ModelProto:
    """The graph of a model with each layer's head count written in, as `fuse` needs it; leaves its attention eager."""
    model.set_attn_implementation("eager")
    model.config.use_cache = False
    traced = trace(model, input_names(model))
    pin_heads(traced)
    return traced


def input_names(model: Any) -> tuple[str, ...]:
    """What the graph is fed: segment ids only where the model tells two segments apart."""
    segments = ("token_type_ids",) if getattr(model.config, "type_vocab_size", 0) > 1 else ()
    return ("input_ids", "attention_mask", *segments)


class _LogitsOnly(nn.Module):
    """The model as a function of tensors, with logits as its only output."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits, shape (rows, classes)."""
        logits: Tensor = self.model(**dict(zip(self.names, inputs, strict=True))).logits
        return logits


def trace(model: Any, names: Sequence[str]) -> onnx.ModelProto:
    """The model's graph by torch.onnx's tracer, opset 17, with free `batch` and `length`."""
    axes: dict[str, dict[int, str]] = {name: {0: "batch", 1: "length"} for name in names}
    with tempfile.TemporaryDirectory(prefix="compressor-") as folder, warnings.catch_warnings(), torch.no_grad():
        file = Path(folder) / MODEL_FILE
        warnings.simplefilter("ignore")  # the tracer warns of every Python branch; parity is the proof
        torch.onnx.export(
            _LogitsOnly(model, names).eval(),
            dummy_inputs(model, names),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(names),
            output_names=["logits"],
            dynamic_axes={**axes, "logits": {0: "batch"}},
        )
        return onnx.load(str(file))


def dummy_inputs(model: Any, names: Sequence[str]) -> tuple[Tensor, ...]:
    """Inputs of the right shapes for tracing, by optimum; leaves every random generator as it was."""
    from optimum.utils.input_generators import DummyTextInputGenerator
    from optimum.utils.normalized_config import NormalizedConfigManager

    kind = model.config.model_type.removeprefix("pruned-")
    normal = NormalizedConfigManager.get_normalized_config_class(kind)(model.config)
    maker = DummyTextInputGenerator("text-classification", normal, batch_size=2, sequence_length=16)
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            return tuple(maker.generate(name, framework="pt") for name in names)
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


def _torch_logits(model: Any, inputs: Inputs) -> Logits:
    with torch.inference_mode():
        logits: Logits = model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.numpy()
    return logits


def _answer(encoded: Encoded, pad_id: int, ask: Callable[[Inputs], Logits]) -> Logits:
    """Logits of all rows: the shortest and the longest alone, the others in batches of 3 and more."""
    order = [index for batch in by_length(encoded, 1) for index in batch]
    middle = order[1:-1]
    batches = [order[:1], middle[:3], middle[3:], order[-1:] if len(order) > 1 else []]
    answers: dict[int, Logits] = {}
    for batch in batches:
        if batch:
            answers.update(zip(batch, ask(collate(encoded, batch, pad_id)), strict=True))
    return np.stack([answers[index] for index in range(len(order))]).astype(np.float32)


def _require(graph: bytes, encoded: Encoded, pad_id: int, reference: Logits, what: str) -> Difference:
    engine = OnnxEngine(graph, spinning=False)
    return require_alike(reference, _answer(encoded, pad_id, engine.logits), what=what)


class Exporter:
    """A model folder, made into one to deploy: model.onnx, tokenizer, config, compressor.json and predict.py."""

    def __init__(
        self,
        model: str | Path,
        *,
        data: Any = None,
        precision: ExportPrecision | None = None,
        layout: Layout = "flat",
        serve: Sequence[Server] = (),
        fp32: str | Path | None = None,
        progress: Progress = silent,
        decide: Callable[[Decision], None] | None = None,
    ) -> None:
        """Take a model folder; the graph of one that holds ONNX is taken as it is.

        Args:
            data: rows to prove the export on (DataSets, or settings of the recipe's `data`); None takes a few
                sentences of our own.
            precision: of the written weights; None keeps that of the model.
            layout: where the files lie (export.layout).
            serve: servers to write a configuration or program for.
            fp32: ONNX folder of the model before it was quantized, which layout hub keeps too; None leaves it out.
            decide: told what was fused and how close the answers are.
        Raises: InputError for an unknown precision, layout or server, a server named twice, or an fp32 folder that no
            layout keeps.
        """
        for name, value, known in (
            *(("precision", value, ExportPrecision) for value in (precision,) if value is not None),
            ("layout", layout, Layout),
            *(("serve", value, Server) for value in serve),
        ):
            if value not in get_args(known):
                raise InputError(f"{name} must be one of {', '.join(get_args(known))} (got {value!r})")
        twice = served_twice(serve)
        if twice:
            raise InputError(twice)
        if fp32 is not None and layout != "hub":
            raise InputError(
                f"fp32 is kept in layout hub alone (got layout {layout}); write layout hub or leave it out"
            )
        self.model = Path(model)
        self.data = data
        self.precision = precision
        self.layout: Layout = layout
        self.serve = tuple(serve)
        self.fp32 = None if fp32 is None else Path(fp32)
        self.progress = progress
        self.decide = decide

    def export(self, out: str | Path) -> Path:
        """The folder `out`, written whole or not at all, reloaded and compared.

        Raises: InputError for an input that is no model, or one of fewer bits that is asked for in others; StageError
            when the answers differ or `out` is there.
        """
        out = Path(out)
        require_empty(out)
        texts, given = self._texts(), self._manifest()
        precision = self.precision or given.precision
        if given.precision not in ("fp32", precision):
            raise InputError(
                f"{self.model} is {given.precision} already and cannot be written as {precision}; give the fp32 model "
                "it was made from, or leave precision out"
            )
        fp32 = self._fp32_file(precision)
        partial = out.with_name(out.name + ".partial")
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        file = partial / MODEL_FILE
        reference = self._take(file, texts, given)
        tolerance = TOLERANCES["fp32"]
        if precision in ("fp16", "bf16") and given.precision == "fp32":
            file.write_bytes(to_half(open_graph(file), precision).SerializeToString(deterministic=True))
            tolerance = TOLERANCES[precision]
        deploy(file, self.model, partial, manifest=replace(given, precision=precision))
        arrange(partial, layout=self.layout, serve=self.serve, fp32=fp32)
        answers = load(partial, spinning=False).logits(texts)
        found = require_alike(reference, answers, what=f"{out}, opened again,", tolerance=tolerance)
        if tolerance != TOLERANCES["fp32"]:
            self._tell(Decision(kind="precision", chosen=precision, because=f"beside fp32, {found}"))
        if out.exists():
            out.rmdir()
        partial.replace(out)
        return out

    def _take(self, file: Path, texts: Sequence[Text], given: Manifest) -> Logits:
        """The model's own answers, shape (rows, classes), after its graph was written to `file`."""
        source = model_file(self.model)
        if source is None:
            find_engine(self.model, "torch")
            return self._convert(file, texts)
        graph = open_graph(source)
        require_bert(graph, where=str(source))
        file.write_bytes(graph.SerializeToString() if has_stored_weights(source) else source.read_bytes())
        opened = load(self.model, engine="onnxruntime", spinning=False)
        if given.asked_alone:  # another's folder does not say so
            opened.rows_per_batch = 1
        return opened.logits(texts)

    def _convert(self, file: Path, texts: Sequence[Text]) -> Logits:
        parity = export_onnx(self.model, file, texts=texts, progress=self.progress)
        left = ", ".join(parity.audit.left)
        slower = f"; left in pieces (slower, not wrong): {left}" if left else ""
        because = f"beside PyTorch, {parity.fused}{slower}"
        forms = {"traced": parity.raw, "fused": parity.fused}
        compared = [{"form": name, **asdict(difference)} for name, difference in forms.items()]
        self._tell(Decision(kind="fusion", chosen=str(parity.audit), because=because, candidates=compared))
        return parity.logits

    def _tell(self, decision: Decision) -> None:
        if self.decide is not None:
            self.decide(decision)

    def _fp32_file(self, precision: Precision) -> Path | None:
        """The graph before quantization; InputError where its folder holds none in fp32, or nothing is quantized."""
        if self.fp32 is None:
            return None
        if precision == "fp32":
            raise InputError(f"fp32 is kept beside a model of fewer bits (got {self.fp32} beside fp32); leave it out")
        file = model_file(self.fp32)
        if file is None or folder_precision(self.fp32) != "fp32":
            raise InputError(f"fp32 must be a folder with an fp32 {MODEL_FILE} (got {self.fp32}); export it first")
        return file

    def _manifest(self) -> Manifest:
        """The folder's own; without one the graph says how many bits it has, and the rows which texts it reads."""
        manifest = replace(read_manifest(self.model), precision=folder_precision(self.model))
        if self.data is None or (self.model / MANIFEST_NAME).is_file():
            return manifest
        return replace(manifest, text=open_data(self.data).text_columns)

    def _texts(self) -> list[Text]:
        if self.data is not None:
            return list(open_data(self.data).select.texts[:PROBE_ROWS])
        pairs = len(read_manifest(self.model).text) == 2
        return [(text, text[::-1]) if pairs else text for text in SAMPLE_TEXTS]
