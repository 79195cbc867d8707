"""A model as INT8 ONNX: schemes are tried in order, compared with the fp32 model on real rows, and one is kept."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from compressor.data.encode import open_encoder
from compressor.data.encoded import collate
from compressor.data.labels import require_labels
from compressor.data.rows import DataSets, open_data
from compressor.device import has_vnni
from compressor.errors import InputError, StageError
from compressor.evaluate.proportions import wilson
from compressor.export.audit import audit_int8
from compressor.export.exporter import Exporter
from compressor.export.folder import deploy, require_empty
from compressor.model.graph_file import folder_precision, model_file, name_nodes, open_graph, require_bert
from compressor.model.manifest import read_manifest
from compressor.quantize.choice import TIMES_FILE, Candidate, Times, choose, timed_elsewhere, times_once
from compressor.quantize.material import Material, calibration_texts, unheard
from compressor.quantize.mixed import Mixture, mixed
from compressor.quantize.products import quantizable
from compressor.quantize.qat import traced
from compressor.quantize.schemes import SCHEMES
from compressor.quantize.settings import (
    Calibrate,
    Choice,
    Isa,
    Mixed,
    Qat,
    RunsOn,
    Scheme,
    Smooth,
    WeightOnly,
)
from compressor.quantize.targets import (
    USERS,
    check_choices,
    check_schemes,
    check_sums,
    made_for,
    need_torch,
    reduced_range,
    unused,
)
from compressor.quantize.trials import Limits, Trials
from compressor.runtime.onnx import Inputs
from compressor.runtime.predictor import MODEL_FILE, find_engine
from compressor.settings import parse_limit
from compressor.stage import Decision, Outcome, Progress, settings_of, silent

STATIC_DROP = 0.01
"""Largest fall of the score beside fp32 of static INT8 where no gate says more; beyond it others are tried."""
AFTER_STATIC: tuple[Scheme, ...] = ("mixed", "dynamic")
"""What is tried in turn where static loses more than that."""
FEW_ROWS = 100
"""Below so many rows of `select` the choice says how little they show."""
KEPT_BETWEEN_TRIES = ("qat", TIMES_FILE)
"""What an interrupted try leaves to the next: checkpoints of the scheme that trains, and the times to choose by."""


class Quantizer:
    """A model folder, written as INT8 ONNX."""

    def __init__(
        self,
        model: str | Path,
        *,
        data: Any,
        try_: Sequence[Scheme] = ("dynamic",),
        choose: Choice = "most_accurate",
        calibrate: Calibrate | dict[str, Any] | None = None,
        mixed: Mixed | dict[str, Any] | None = None,
        smooth: Smooth | dict[str, Any] | None = None,
        qat: Qat | dict[str, Any] | None = None,
        weight_only: WeightOnly | dict[str, Any] | None = None,
        isa: Isa | None = None,
        target: RunsOn = "cpu",
        reduce_range: bool | None = None,
        exported: Path | None = None,
        teacher: Path | None = None,
        device: str = "cpu",
        seed: int = 17,
        smoke: bool = False,
        progress: Progress = silent,
        decide: Callable[[Decision], None] | None = None,
    ) -> None:
        """Take an fp32 model folder, with safetensors or model.onnx.

        Args:
            data: DataSets, or settings of the recipe's `data`; answers are compared on `select`, ranges and trainings
                read `train` and `unlabelled`.
            try_: schemes in the order they are tried; qat, and static for TensorRT, need safetensors.
            choose: which of those that pass is kept.
            calibrate, mixed, smooth, qat, weight_only: settings of the schemes, as in a recipe.
            isa: instructions of the processor that the model is for; None is this one.
            target: what will run it.
            reduce_range: weights whose products do not saturate in sums of 16 bits; None decides by `isa`.
            exported: the fused fp32 export of `model`, where there is one already.
            teacher: model folder that teaches scheme qat; None takes `model` itself.
            device: where scheme qat trains, `cpu` or `gpu`.
            seed: draws calibration rows and rows to time.
            smoke: random weights: a scheme that disagrees with fp32 is kept all the same, and nothing is timed.
            decide: told what was chosen and why.
        Raises: InputError for unknown schemes or choices, none at all, one twice, settings that cannot be or that no
            scheme reads, a scheme that the target cannot run, or a model that is no fp32 one.
        """
        check_choices(try_, choose=choose, isa=isa, target=target, device=device)
        self.model = Path(model)
        precision = folder_precision(self.model)
        if precision != "fp32":
            named = precision.upper() if precision == "int8" else precision
            raise InputError(f"{self.model} is {named} already; quantize the fp32 model it was made from")
        self.data = data
        self.try_ = tuple(try_)
        self.choose = choose
        self.calibrate = settings_of(Calibrate, calibrate or {}, "calibrate")
        self.mixed = settings_of(Mixed, mixed or {}, "mixed")
        self.smooth = None if smooth is None else settings_of(Smooth, smooth, "smooth")
        self.qat = settings_of(Qat, qat or {}, "qat")
        self.weight_only = settings_of(WeightOnly, weight_only or {}, "weight_only")
        check_sums(isa, reduce_range)
        self.isa = isa
        self.target = target
        self.reduce_range = reduced_range(isa, has_vnni=has_vnni()) if reduce_range is None else reduce_range
        self.exported = exported
        self.teacher = teacher
        self.device = device
        self.seed = seed
        self.smoke = smoke
        self.progress = progress
        self.decide = decide or unheard
        self._torch_folder = self.model if find_engine(self.model) == "torch" else None
        self._check_schemes()

    def fit(
        self,
        out: str | Path,
        *,
        work: Path | None = None,
        accept: Callable[[Path], Outcome] | None = None,
        fallback: bool = True,
    ) -> Path:
        """The folder `out` with the INT8 model, its tokenizer and predict.py.

        A scheme that fails is told and the others are tried all the same.

        Args:
            work: where fp32 and the candidates are made; what is left there at the end are the times that a choice was
                made by. None makes a folder beside `out`, of which nothing is left.
            accept: the gate; without one each scheme is held to the drop and agreement of `mixed` where that is tried,
                else to a drop of 1 pp where static is.
            fallback: where no scheme passes it, `out` holds the fp32 model and the decision says so; False keeps the
                most accurate INT8 model, for whoever holds it against the gate again.
        Raises: InputError for settings that nothing reads where there is a gate; StageError where `out` is there, or no
            scheme gives a model whose answers have to do with those of fp32, and fp32 is no way out.
        """
        out = Path(out)
        require_empty(out)
        self._check_read(gate=accept is not None)
        given, work = work, (work or out.parent) / (out.name + ".quantize")
        times_file = (given or work) / TIMES_FILE
        _empty(work)
        data = open_data(self.data)
        self._check_labels(data)
        source = self._fp32(work / "fp32")
        trials = Trials(
            source,
            data=data,
            manifest=replace(
                read_manifest(source), precision="int8", isa=made_for(self.isa, reduce_range=self.reduce_range)
            ),
            work=work,
            precise=not self.reduce_range and not has_vnni(),
            accept=accept,
            limits=self._limits(),
            smoke=self.smoke,
        )
        tried = self._all(self._material(source, data, work), trials)
        kept = self._kept(tried, trials, times_file, fallback=fallback and accept is not None)
        if out.exists():
            out.rmdir()
        out.parent.mkdir(parents=True, exist_ok=True)
        (source if kept is None else _made(work, kept.scheme)).replace(out)
        shutil.rmtree(work)
        return out

    def _limits(self) -> Limits | None:
        """What every scheme must keep where there is no gate; None where any will do."""
        if "mixed" in self.try_:
            return Limits(drop=parse_limit(self.mixed.drop).value / 100, agreement=self.mixed.agreement)
        return Limits(drop=STATIC_DROP) if "static" in self.try_ else None

    def _check_labels(self, data: DataSets) -> None:
        """InputError where rows and model name other classes; a model that names none needs as many."""
        known = read_manifest(self.model).labels
        unnamed = all(re.fullmatch(r"LABEL_\d+", name) for name in known)
        if not unnamed or len(known) != len(data.labels):
            require_labels(self.model, known, data.labels)

    def _check_schemes(self) -> None:
        """InputError where a scheme cannot run, has not what it needs, or settings serve none of them."""
        check_schemes(self.try_, self.target, self.mixed, self.choose)
        self._check_read(gate=False)
        if self.teacher is not None and "qat" not in self.try_:
            raise InputError(f"teacher serves scheme qat alone (got {self.teacher}); add qat to try or leave it out")
        needing = need_torch(self.try_, self.target, of=self.mixed.of)
        if needing and self._torch_folder is None:
            raise InputError(
                f"scheme {needing[0]} starts from safetensors, and {self.model} holds ONNX alone; give the folder that "
                f"it was exported from, or take {needing[0]} out of try"
            )

    def _check_read(self, *, gate: bool) -> None:
        """InputError for settings that nothing reads, with a gate or without."""
        wrong = unused(self.try_, {name: getattr(self, name) for name in USERS}, gate=gate)
        if wrong:
            raise InputError(wrong)

    def _fp32(self, folder: Path) -> Path:
        """A folder of ours with the fused fp32 graph."""
        if self.exported is None and self._torch_folder is not None:
            return Exporter(self.model, data=self.data, progress=self.progress).export(folder)
        there = self.exported or self.model
        file = model_file(there) or there / MODEL_FILE
        graph = open_graph(file)
        require_bert(graph, where=str(file))
        made = deploy(file, there, folder, manifest=read_manifest(there))
        names = Counter(node.name for node in graph.graph.node)
        if any(not node.name or names[node.name] > 1 for node in quantizable(graph)):
            name_nodes(graph.graph)
            (made / MODEL_FILE).write_bytes(graph.SerializeToString(deterministic=True))
        return made

    def _material(self, source: Path, data: DataSets, work: Path) -> Material:
        graphs: list[ModelProto] = []

        def raw() -> ModelProto:
            if self._torch_folder is None:
                raise InputError(f"{self.model} holds ONNX alone; this scheme needs the safetensors it came from")
            if not graphs:
                graphs.append(traced(self._torch_folder))
            copy = ModelProto()
            copy.CopyFrom(graphs[0])
            return copy

        def batches() -> Iterator[Inputs]:
            texts = calibration_texts(data, self.calibrate, seed=self.seed)
            encoder = open_encoder(source, read_manifest(source).max_tokens)
            encoded = encoder.encode(texts)
            for row in range(len(texts)):
                yield collate(encoded, [row], encoder.pad_id)

        return Material(
            folder=source,
            torch_folder=self._torch_folder,
            raw=raw,
            batches=batches,
            reduce_range=self.reduce_range,
            seed=self.seed,
            work=work,
            progress=self.progress,
            decide=self.decide,
            smooth=self.smooth,
            data=data,
            teacher=self.teacher,
            device=self.device,
            target=self.target,
            smoke=self.smoke,
        )

    def _all(self, material: Material, trials: Trials) -> list[Candidate]:
        """What came of every scheme of `try`, and of others where static loses too much and no gate says how much."""
        queue, tried = list(self.try_), list[Candidate]()
        for number, scheme in enumerate(queue):
            self.progress("quantize", number, len(queue))
            found = self._try(scheme, material, trials)
            tried.append(found)
            left = [other for other in AFTER_STATIC if other not in queue]
            lost = scheme == "static" or (scheme == "mixed" and "static" in queue)
            if found.refused and lost and left and trials.accept is None and self.target == "cpu":
                queue.append(left[0])
                because = f"{found.refused}, and no gate is set"
                self.decide(Decision(kind=scheme, chosen=f"{left[0]} is tried too", because=because))
        self.progress("quantize", len(queue), len(queue))
        return tried

    def _try(self, scheme: Scheme, material: Material, trials: Trials) -> Candidate:
        """The candidate; refused, with the reason, where the scheme fails or does not keep what was asked."""
        try:
            mixture = self._mix(material, trials) if scheme == "mixed" else None
            graph = self._graph(scheme, material) if mixture is None else mixture.graph
            folder = trials.write(_made(trials.work, scheme).name, graph)
            what = f"scheme {scheme} of {self.model}"
            trial = trials.judged(folder, what=what) if mixture is None else mixture.trial
        except (StageError, InputError) as error:
            if isinstance(error, InputError) and len(self.try_) == 1:
                raise
            shutil.rmtree(_made(trials.work, scheme), ignore_errors=True)
            return Candidate(scheme, None, reduce_range=self.reduce_range, refused=str(error))
        counted = audit_int8(graph, read_manifest(material.folder).shapes)
        return Candidate(
            scheme=scheme,
            trial=trial,
            bytes=(folder / MODEL_FILE).stat().st_size,
            integer_products=counted.integer,
            products=counted.products,
            kept_in_float=() if mixture is None else tuple(each.words for each in mixture.kept),
            reduce_range=self.reduce_range,
            refused=trial.because,
        )

    def _graph(self, scheme: Scheme, material: Material, *, float_nodes: frozenset[str] = frozenset()) -> ModelProto:
        settings = {
            "dynamic": self.smooth,
            "static": self.calibrate,
            "qat": self.qat,
            "weight_only": self.weight_only,
        }
        return SCHEMES[scheme](material, settings[scheme], float_nodes=float_nodes)

    def _mix(self, material: Material, trials: Trials) -> Mixture:
        """The search for mixed: as the settings say, or as static's way out where the user asked for static alone."""
        of: Scheme = self.mixed.of if "mixed" in self.try_ else "static"
        return mixed(
            material,
            self.mixed,
            base=lambda nodes: self._graph(of, material, float_nodes=nodes),
            graph=material.raw() if self.target == "tensorrt" else open_graph(material.folder / MODEL_FILE),
            trials=trials,
        )

    def _kept(
        self, tried: Sequence[Candidate], trials: Trials, times_file: Path, *, fallback: bool
    ) -> Candidate | None:
        """The candidate to keep, told with all others; None where it is fp32."""
        left = [each for each in tried if not each.refused]
        times, again = None, ""
        if self.choose == "fastest" and len(left) > 1 and not self.smoke:
            folders = {str(each.scheme): _made(trials.work, each.scheme) for each in left}
            times, replayed = times_once(times_file, folders, trials.texts, seed=self.seed, progress=self.progress)
            again = ", as timed before the interruption" * replayed + timed_elsewhere(trials.manifest.isa)
            tried = [_timed(each, times) for each in tried]
        choice = "most_accurate" if self.choose == "fastest" and self.smoke else self.choose
        kept, because = choose(tried, choice, times)
        because += again
        with_file = [each for each in tried if each.trial is not None]
        if kept is None and not fallback:
            if not with_file:
                reasons = "; ".join(f"{each.scheme}: {each.refused}" for each in tried)
                raise StageError(f"no scheme gave an INT8 model of {self.model}: {reasons}")
            kept = max(with_file, key=lambda each: each.agreement)
            because = f"the most accurate, although {kept.refused}"
        self.decide(self._decision(kept, because, tried))
        return kept

    def _decision(self, kept: Candidate | None, because: str, tried: Sequence[Candidate]) -> Decision:
        if kept is None:
            chosen, because = "fp32", "no scheme passed the gate, so the model stays in fp32"
            refused = "; ".join(f"{each.scheme}: {each.refused}" for each in tried)
            because += f" ({refused})"
        else:
            assert kept.trial is not None
            chosen, beside = kept.scheme, kept.trial
            because = (
                f"{because}; decides as fp32 on {beside.agreement:.1%} of {beside.rows} rows of select "
                f"({beside.flips} otherwise), logits differ by up to {beside.largest_difference:.2g}, "
                f"{beside.mean_difference:.2g} on average; {self._bits()}"
            )
            if 0 < beside.rows < FEW_ROWS:
                low = wilson(beside.agreement, beside.rows).low
                because += f"; of so few rows that shows an agreement above {low:.0%} alone: give more rows to select"
        return Decision(kind="quantize", chosen=chosen, because=because, candidates=[each.told() for each in tried])

    def _bits(self) -> str:
        """For which sums the weights are, and why."""
        if not self.reduce_range:
            return "weights for sums of 32 bits" + (f", as {self.isa} has them" if self.isa else "")
        if self.isa is not None:
            return f"weights for sums of 16 bits, as {self.isa} has no wider ones"
        return "weights for sums of 16 bits, as this CPU has no VNNI or the caller asked for it"


def _made(work: Path, scheme: Scheme) -> Path:
    """The folder of a scheme's model."""
    return work / f"made-{scheme}"


def _timed(candidate: Candidate, times: Times) -> Candidate:
    return candidate if candidate.refused else replace(candidate, p50_ms=times.p50_ms(candidate.scheme))


def _empty(work: Path) -> None:
    """Remove what an earlier try left, but for what its training goes on from."""
    for path in work.glob("*") if work.exists() else ():
        if path.name not in KEPT_BETWEEN_TRIES:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
