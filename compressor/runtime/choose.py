"""`engine: fastest`: the engines that can open a folder, timed on this machine, and the fastest recorded in it."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from compressor.bench.isolation import Timing, time_in_turn
from compressor.bench.process import Command
from compressor.bench.settings import Target
from compressor.bench.statistics import Interval, median_interval, ratio_interval
from compressor.device import cpu_name, training_device, usable_threads
from compressor.errors import CompressorError, InputError
from compressor.model.manifest import Precision, record_engine, require_recordable
from compressor.runtime.engine import Cast, Opened, Opening
from compressor.runtime.openvino import INSTALL
from compressor.runtime.predictor import PLACES, Predictor, find_engine, open_predictor
from compressor.runtime.providers import CUDA, TENSORRT, require_provider
from compressor.runtime.timed import timed_command, timed_environment, write_rows
from compressor.stage import Decision, Progress, silent

if TYPE_CHECKING:
    from compressor.data.rows import Text

ROUNDS, FEWEST_ROUNDS, SLOT_SECONDS = 7, 3, 0.2
"""Rounds unless told, fewest that can be told, and seconds that each engine gets in a round."""
ROWS = 16
"""Rows that are timed, and on which the engines must agree."""
TOLERANCE: dict[Precision, float] = {"fp32": 2e-3, "fp16": 5e-2, "bf16": 0.2, "int8": 0.2}
"""Largest difference of a logit from onnxruntime's before an engine is another model: engines round otherwise."""
MADE_UP_TOKENS = (8, 16, 32, 64)
"""Lengths of the rows that are made where none are given."""


@dataclass(frozen=True)
class EngineChoice:
    """What `choose_engine` found."""

    engine: Opened
    """The fastest that answers as the first does."""
    milliseconds: Mapping[str, Interval]
    """Engine to the median time of one row with its 95 % interval, those timed."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Engine to why it was not timed."""
    because: str = ""

    def decision(self) -> Decision:
        """The line of decisions.jsonl."""
        timed = {
            name: {"p50_ms": one.value, "low": one.low, "high": one.high} for name, one in self.milliseconds.items()
        }
        return Decision(
            kind="engine",
            chosen=self.engine,
            because=self.because,
            candidates={**timed, **{name: {"refused": why} for name, why in self.refused.items()}},
        )


def choose_engine(
    folder: str | Path,
    texts: Sequence[Text] | None = None,
    *,
    opening: Opening | None = None,
    rounds: int = ROUNDS,
    record: bool = True,
    progress: Progress = silent,
) -> EngineChoice:
    """The engine that answers single rows of a model folder fastest here, each timed in a pinned process of its own.

    Args:
        folder: as for `load`.
        texts: rows as in use, of which 16 are timed; None makes some of 8 to 64 tokens from the vocabulary.
        opening: threads, device and precision; None takes the CPU and all its threads.
        rounds: of interleaved slots, 3 or more.
        record: whether the engine is written into compressor.json, where `load` finds it; that of device cpu alone is,
            as `load` asks for no other.
        progress: called while it works.
    Raises: InputError where no engine can open the folder or the choice could not be recorded, StageError where a
    timed process fails.
    """
    folder, opening = Path(folder), opening or Opening()
    if rounds < FEWEST_ROUNDS:
        raise InputError(f"rounds must be {FEWEST_ROUNDS} or more (got {rounds})")
    record = record and opening.device == "cpu"
    threads = opening.threads or usable_threads()
    refused: dict[str, str] = {}
    opened = _openable(folder, opening, refused)
    if not opened:
        raise InputError(_nowhere(folder, opening.device, refused))
    if record:
        require_recordable(folder)
    rows = list(texts)[:ROWS] if texts else made_up(next(iter(opened.values())))
    agreeing = _agreeing(opened, rows, opening.precision, refused)
    opened.clear()  # their memory and threads must not disturb the timing
    with tempfile.TemporaryDirectory(prefix="compressor-engines-") as work:
        file = write_rows(Path(work) / "rows.jsonl", rows)
        commands = [_command(folder, name, opening, threads, file) for name in agreeing]
        timing = time_in_turn(
            commands,
            rows=len(rows),
            rounds=rounds,
            threads=threads,
            slot_seconds=SLOT_SECONDS,
            progress=lambda _what, done, total: progress("timing engines", done, total),
        )
    choice = chosen_of(agreeing, timing, refused)
    if record:
        record_engine(folder, choice.engine)
    return choice


def at_target(
    target: Target, folder: str | Path, texts: Sequence[Text] | None = None, *, progress: Progress = silent
) -> tuple[Target, EngineChoice | None]:
    """The target with the engine that runs there, and for `fastest` what was measured, on the model in `folder`.

    Nothing is written into the folder; `record_engine` does that to the one that is deployed.
    """
    if target.engine != "fastest":
        return target, None
    opening = Opening(threads=target.threads, device=target.device)
    choice = choose_engine(folder, texts, opening=opening, record=False, progress=progress)
    return target.model_copy(update={"engine": choice.engine}), choice


def not_here(target: Target) -> str | None:
    """What this machine lacks for a target, and what to install; None where it lacks nothing. Opens no model."""
    if target.device == "gpu" and training_device() != "gpu":
        return "this machine has no NVIDIA device that the installed torch can use"
    if target.engine == "openvino" and importlib.util.find_spec("openvino") is None:
        return f"engine openvino is not installed; run {INSTALL}"
    needed = {"onnxruntime": CUDA, "tensorrt": TENSORRT}.get(target.engine) if target.device == "gpu" else None
    if needed is None:
        return None
    try:
        require_provider(needed, target.engine)
    except InputError as error:
        return str(error)
    return None


def why_not(folder: str | Path, target: Target) -> str | None:
    """Why the model in the folder cannot run at the target; None where it can. Opens it to find out.

    At one of engine `fastest` nothing runs until `at_target` has given it another.
    """
    try:
        opening = Opening(threads=target.threads, device=target.device, precision=target.precision)
        _probe(Path(folder), find_engine(Path(folder), target.engine), opening)
    except CompressorError as error:
        return str(error)
    return None


def _openable(folder: Path, opening: Opening, refused: dict[str, str]) -> dict[Opened, Predictor]:
    """Every engine that opens the folder here; why another does not goes into `refused`."""
    opened: dict[Opened, Predictor] = {}
    for name in get_args(Opened):
        if opening.device not in PLACES[name]:
            continue
        try:
            opened[name] = _probe(folder, find_engine(folder, name), opening)
        except CompressorError as error:
            refused[name] = str(error)
    return opened


def _probe(folder: Path, engine: Opened, opening: Opening) -> Predictor:
    """The model, opened to be looked at: its threads do not wait busily, and torch keeps the threads of the process."""
    threads = None if engine == "torch" else opening.threads
    return open_predictor(folder, engine, replace(opening, threads=threads, spinning=False))


def _nowhere(folder: Path, device: str, refused: Mapping[str, str]) -> str:
    """Why no engine opens the folder: what they all say, or else what each does."""
    if len(set(refused.values())) == 1:
        return next(iter(refused.values()))
    reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
    return f"{folder} opens in no engine on device {device}: {reasons}"


def _agreeing(
    opened: Mapping[Opened, Predictor], rows: Sequence[Text], cast: Cast, refused: dict[str, str]
) -> list[Opened]:
    """The engines whose logits are those of the first, but for rounding."""
    first, *others = opened
    tolerance = TOLERANCE[cast if cast != "fp32" else opened[first].manifest.precision]
    wanted, agreeing = opened[first].logits(rows), [first]
    for name in others:
        apart = float(np.abs(opened[name].logits(rows) - wanted).max(initial=0.0))
        if apart <= tolerance:
            agreeing.append(name)
        else:
            refused[name] = f"its logits are up to {apart:.2g} from those of {first}, {tolerance:g} is rounding"
    return agreeing


def _command(folder: Path, name: Opened, opening: Opening, threads: int, rows: Path) -> Command:
    line = timed_command(
        folder, engine=name, threads=threads, rows=rows, device=opening.device, precision=opening.precision
    )
    return Command(name, tuple(line), timed_environment(threads))


def chosen_of(engines: Sequence[Opened], timing: Timing, refused: Mapping[str, str]) -> EngineChoice:
    """The choice from raw times: the fastest, but the first where it is not surely slower.

    The first is `engines[0]`; surely means that the 95 % interval of the ratio of the rounds' medians lies below 1.
    """
    rounds = {name: timing.rounds_of(name) for name in engines}
    milliseconds: dict[str, Interval] = {name: median_interval(list(found.values())) for name, found in rounds.items()}
    first = engines[0]
    medians = {name: [float(np.median(found[one])) for one in sorted(found)] for name, found in rounds.items()}
    ratios = {name: ratio_interval(medians[name], medians[first]) for name in engines[1:]}
    faster = [name for name, ratio in ratios.items() if ratio.high < 1.0]
    where = f"{timing.threads} threads of {cpu_name()}"
    if faster:
        best = min(faster, key=lambda name: ratios[name].value)
        ratio = ratios[best]
        because = f"{ratio.value:.2f}x the time of {first} ({ratio.low:.2f} to {ratio.high:.2f}) on {where}"
        return EngineChoice(best, milliseconds, refused, because)
    others = ", ".join(f"{name} {ratio.low:.2f}x to {ratio.high:.2f}x" for name, ratio in ratios.items())
    because = (
        f"none is surely faster on {where} ({others})" if others else f"no other engine opens the model on {where}"
    )
    return EngineChoice(first, milliseconds, refused, because)


def made_up(predictor: Predictor, *, seed: int = 17) -> list[Text]:
    """Rows of tokens drawn from the vocabulary, of the lengths of MADE_UP_TOKENS that the model reads."""
    draw = np.random.default_rng(seed)
    tokenizer, columns = predictor.encoder.tokenizer, len(predictor.manifest.text)
    words = tokenizer.get_vocab_size()
    rows: list[Text] = []
    for number in range(ROWS):
        tokens = min(MADE_UP_TOKENS[number % len(MADE_UP_TOKENS)], predictor.manifest.max_tokens)
        parts = [tokenizer.decode(draw.integers(0, words, max(1, tokens // columns)).tolist()) for _ in range(columns)]
        rows.append(parts[0] if columns == 1 else (parts[0], parts[1]))
    return rows
