"""The models that a report is about: where they lie, what they weigh, what they answer, how long they take."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from compressor.bench.isolation import Timing
from compressor.bench.settings import Benchmark, Target
from compressor.data.rows import Text
from compressor.errors import CompressorError, InputError
from compressor.model.graph_file import MODEL_FILE, model_file, open_graph
from compressor.model.manifest import read_manifest
from compressor.report.workloads import Desk, check_targets, opens, ratio_target, runs, skipped
from compressor.stage import Progress, silent

ROWS_TIMED = 64
"""Rows of the data that are timed, drawn with a fixed seed."""
CONTROL = "/aa"
"""Ending of the name under which the reference is timed a second time."""
PYTORCH = "/pytorch"
"""Ending of the name under which the reference is timed in PyTorch beside the others."""


@dataclass(frozen=True)
class Subject:
    """One model on one engine: its name in the report, its folder, its answers once they are known."""

    name: str
    folder: Path
    """What `runtime.load` opens: holds model.onnx, or *.safetensors for engine torch."""
    engine: Literal["onnxruntime", "torch"] = "onnxruntime"
    precision: str = "fp32"
    path: str = ""
    """The folder as the report shows it, relative to the run."""
    parameters: int | None = None
    """Numbers the model learned; counted in the file unless given."""
    logits: np.ndarray | None = None
    """On the scored rows, shape (rows, classes); None until scored."""
    untimed: str | None = None
    """Why it is not timed; None where it is."""
    torch_folder: Path | None = None
    """The safetensors that an ONNX file was exported from; None where they are not here."""

    @property
    def key(self) -> str:
        """Name that tells engines apart, used for processes and samples."""
        return self.name if self.engine == "onnxruntime" else f"{self.name}@{self.engine}"

    def files(self) -> list[Path]:
        """The files that hold the weights; InputError where there are none."""
        place, pattern = self.folder, "*.safetensors"
        if self.engine == "onnxruntime":
            graph = model_file(self.folder) or self.folder / MODEL_FILE
            place, pattern = graph.parent, f"{graph.name}*"
        found = sorted(path for path in place.glob(pattern) if path.is_file())
        if not found:
            raise InputError(f"{self.name}: {self.folder} holds no {pattern} for engine {self.engine}")
        return found


def model_bytes(subject: Subject) -> int:
    """Bytes of the model file with its external data."""
    return sum(path.stat().st_size for path in subject.files())


def same_models(subjects: Sequence[Subject]) -> dict[str, str]:
    """Key of each subject that an earlier one on the same engine is the very same as, to that one's key.

    The same weights, tokenizer and longest row: the same weights read otherwise are another model.
    """
    first: dict[tuple[str, str], str] = {}
    same = {}
    for subject in subjects:
        total = hashlib.sha256()
        tokenizer = [path for path in (subject.folder / "tokenizer.json",) if path.is_file()]
        total.update(str(_longest(subject.folder)).encode())
        for path in (*subject.files(), *tokenizer):
            with path.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
        earlier = first.setdefault((subject.engine, total.hexdigest()), subject.key)
        if earlier != subject.key:
            same[subject.key] = earlier
    return same


def _longest(folder: Path) -> int | None:
    """Most tokens of a row, as the folder says; None where it does not."""
    try:
        return read_manifest(folder).max_tokens
    except CompressorError:
        return None


def count_parameters(subject: Subject) -> int:
    """Elements of the weights in the file; scales and zero points of quantized weights are not counted."""
    if subject.engine == "torch":
        return sum(_count_in_header(path) for path in subject.files())
    import onnx

    graph = open_graph(model_file(subject.folder) or subject.folder / MODEL_FILE, weights=False).graph
    integers = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    learned = [one for one in graph.initializer if one.data_type not in integers]
    learned = [one for one in learned if not one.name.endswith(("_scale", "_zero_point"))]
    return sum(int(np.prod(one.dims)) for one in learned if one.dims)


def _count_in_header(path: Path) -> int:
    """Elements of the tensors in a safetensors file, from its header alone."""
    with path.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(int(np.prod(entry["shape"])) for name, entry in header.items() if name != "__metadata__")


def score_subjects(
    subjects: Sequence[Subject], texts: Sequence[Text], *, threads: int | None = None, progress: Progress = silent
) -> tuple[Subject, ...]:
    """The subjects with their logits on `texts`; those that have them keep them, the same file is asked once."""
    same, done = same_models(subjects), dict[str, np.ndarray]()
    for number, subject in enumerate(subjects):
        progress("scoring", number, len(subjects))
        logits = subject.logits if subject.logits is not None else done.get(same.get(subject.key, ""))
        done[subject.key] = _logits(subject, texts, threads) if logits is None else logits
        if len(done[subject.key]) != len(texts):
            raise InputError(f"{subject.name} has {len(done[subject.key])} answers for {len(texts)} rows")
    progress("scoring", len(subjects), len(subjects))
    return tuple(replace(subject, logits=done[subject.key]) for subject in subjects)


def _logits(subject: Subject, texts: Sequence[Text], threads: int | None) -> np.ndarray:
    from compressor.runtime.predictor import load

    predictor = load(subject.folder, engine=subject.engine, threads=threads, spinning=False)
    return np.asarray(predictor.logits(list(texts)), dtype=np.float32)


def draw_texts(texts: Sequence[Text], *, seed: int = 17, rows: int = ROWS_TIMED) -> list[Text]:
    """The rows that are timed: at most `rows`, without replacement, the same for one seed."""
    order = np.random.default_rng(seed).permutation(len(texts))[:rows]
    return [texts[int(place)] for place in order]


def time_subjects(
    subjects: Sequence[Subject],
    texts: Sequence[Text],
    *,
    benchmark: Benchmark | None = None,
    targets: Mapping[str, Target],
    reference: str = "teacher",
    seed: int = 17,
    looks: int = 1,
    progress: Progress = silent,
) -> dict[str, Timing]:
    """Raw timings by target: every subject on the target's engine, and the reference twice where ratios are taken.

    Each runs in a fresh pinned process while this one waits. Subjects that share a file are timed once, those that say
    why they are not timed never; a target that this machine lacks (workloads.skipped), and one of engine `fastest` that
    was given none (engines.with_engines), is left out. Ratios are taken, and scenarios run, at
    workloads.ratio_target. There, `looks` (1 to 3) lots of rounds are timed at most, the further ones while a subject
    is neither faster, slower nor the same; and the reference in PyTorch, too, on a CPU whose engine is another.
    Raises StageError when a process fails, InputError for a target that is not in `targets`.
    """
    benchmark = benchmark or Benchmark()
    check_targets(benchmark, targets)
    same, found = same_models(subjects), dict[str, Timing]()
    from compressor.runtime.timed import write_rows

    with tempfile.TemporaryDirectory(prefix="compressor-rows-") as folder:
        drawn = draw_texts(texts, seed=seed)
        rows = write_rows(Path(folder) / "rows.jsonl", drawn)
        known = [name for name in benchmark.targets if targets[name].engine != "fastest"]
        here = [name for name in known if skipped(targets[name]) is None]
        first = ratio_target(here, targets)
        for name in here:
            target = targets[name]
            timed = [one for one in subjects if one.untimed is None and one.key not in same]
            named = {one.key: one for one in timed if one.engine == opens(target) and runs(one.folder, target)}
            if not named:
                continue
            again = {key + CONTROL: one for key, one in named.items() if one.name == reference and name == first}
            beside = _in_pytorch(again.values(), target) if benchmark.pytorch else {}
            twin, pytorch = next(iter(again), None), next(iter(beside), None)
            every = named | again | beside
            desk = Desk(every, twin, rows, len(drawn), target, benchmark, seed, progress, looks, pytorch)
            found[name] = desk.time(scenarios=name == first)
    return found


def _in_pytorch(references: Iterable[Subject], target: Target) -> dict[str, Subject]:
    """The reference as a process of engine torch, where its weights open and a CPU runs it in another engine."""
    if target.device != "cpu" or opens(target) == "torch":
        return {}
    return {
        one.name + PYTORCH: replace(one, engine="torch", folder=one.torch_folder)
        for one in references
        if one.torch_folder is not None and no_pytorch(one) is None
    }


def no_pytorch(reference: Subject) -> str | None:
    """Why its safetensors cannot be timed in PyTorch; None where they can, or there are none."""
    from compressor.runtime.choose import why_not

    return None if reference.torch_folder is None else why_not(reference.torch_folder, Target(engine="torch"))
