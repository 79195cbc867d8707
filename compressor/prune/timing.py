"""Models timed side by side for pruning: written as they would run, each in a pinned process of its own."""

from __future__ import annotations

import copy
import json
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from compressor.bench.isolation import Command, Timing, time_in_turn
from compressor.bench.settings import Target
from compressor.bench.statistics import p50_by_round, ratio_interval
from compressor.data.encode import open_encoder
from compressor.data.rows import DataSets, Text
from compressor.device import cpu_name
from compressor.errors import InputError
from compressor.export.exporter import traced_for_fusion
from compressor.export.folder import deploy
from compressor.export.fusion import fuse
from compressor.model.encoders import save_model
from compressor.model.families import PRUNED
from compressor.model.graph_file import MODEL_FILE
from compressor.model.manifest import LayerShape, Manifest, read_manifest
from compressor.model.parts import family, shapes
from compressor.model.surgery import fresh_model
from compressor.prune.latency_table import LatencyTable, Model, Place, TableKey, design, fitted, key_of
from compressor.prune.scoring import row_inputs
from compressor.runtime.choose import not_here
from compressor.runtime.timed import timed_command, timed_environment, write_rows
from compressor.sources.cache import write_atomically
from compressor.stage import Decision, Progress

ROWS = 64
"""Rows that are timed, as many as the report times."""
ROUNDS = 15
SLOT_SECONDS = 0.2
PROBE_ROWS = 4
"""Rows on which a torch model to be timed is compared with itself."""
MOST_OFF = 10.0
"""Percent that the predicted share of the time may be off the measured one without a warning."""

Make = Callable[[], PreTrainedModel]


@dataclass(frozen=True)
class Scene:
    """What models are timed on: rows at their own lengths, one at a time, in one engine with so many threads."""

    folder: Path
    """Whose tokenizer and configuration the timed models take."""
    manifest: Manifest
    texts: tuple[Text, ...]
    lengths: tuple[int, ...]
    """Tokens of each."""
    place: Place

    def key(self, model: PreTrainedModel) -> TableKey:
        """Of a table for models cut from this one."""
        activation = str(getattr(model.config, family(model).activation))
        kind = model.config.model_type.removeprefix(PRUNED)
        return key_of(shapes(model), self.place, self.lengths, activation=activation, family=kind)


def scene_of(folder: Path, data: DataSets, place: Place, *, seed: int) -> Scene:
    """The scene for a model folder: 64 rows of `select`, or of `train` where that is empty.

    Raises: InputError for an engine that does not run here, a precision other than fp32, or no rows.
    """
    missing = not_here(Target(engine=place.engine, threads=place.threads))
    if missing is not None:
        raise InputError(f"until.latency cannot be measured: {missing}")
    if place.precision != "fp32":
        raise InputError(f"until.latency is measured in fp32 alone (got {place.precision}); prune before you quantize")
    rows = data.select if len(data.select) else data.train
    if not len(rows):
        raise InputError("until.latency is measured on rows of select or train; the data has neither")
    chosen = sorted(random.Random(seed).sample(range(len(rows)), min(ROWS, len(rows))))
    texts = tuple(rows.texts[each] for each in chosen)
    manifest = replace(
        read_manifest(folder), labels=data.labels, text=data.text_columns, max_tokens=data.max_tokens, precision="fp32"
    )
    encoded = open_encoder(folder, data.max_tokens).encode(list(texts))
    return Scene(folder, manifest, texts, tuple(int(each) for each in encoded.lengths), place)


def write_model(model: PreTrainedModel, folder: Path, scene: Scene) -> Path:
    """`folder` with the model in the form that its engine runs: fused fp32 ONNX, or safetensors for torch."""
    work = copy.deepcopy(model).cpu().eval()
    if scene.place.engine == "torch":
        encoder = open_encoder(scene.folder, scene.manifest.max_tokens)
        encoded = encoder.encode(list(scene.texts[:PROBE_ROWS]))
        probe = row_inputs(encoded, range(len(encoded)), encoder.pad_id)
        return save_model(work, folder, tokenizer_from=scene.folder, manifest=scene.manifest, probe=probe)
    folder.mkdir(parents=True)
    file = folder / MODEL_FILE
    file.write_bytes(fuse(traced_for_fusion(work)).SerializeToString(deterministic=True))
    return deploy(file, scene.folder, folder, manifest=replace(scene.manifest, shapes=shapes(work)))


@dataclass(frozen=True)
class Timed:
    """Median milliseconds of each round by model, and the conditions they were taken in."""

    p50: Mapping[str, Sequence[float]]
    conditions: Mapping[str, Any]


def time_models(models: Mapping[str, Make], scene: Scene, *, rounds: int = ROUNDS, progress: Progress) -> Timed:
    """The models by name, timed in interleaved rounds on the same rows; each is made only while it is written.

    Raises: StageError when a timed process fails.
    """
    threads = scene.place.threads
    with tempfile.TemporaryDirectory(prefix="compressor-latency-") as work:
        rows = write_rows(Path(work) / "rows.jsonl", scene.texts)
        commands = []
        for number, (name, make) in enumerate(models.items()):
            progress("writing models to time", number, len(models))
            folder = write_model(make(), Path(work) / str(number), scene)
            line = timed_command(folder, engine=scene.place.engine, threads=threads, rows=rows)
            commands.append(Command(name, tuple(line), timed_environment(threads)))
        timing = time_in_turn(
            commands,
            rows=len(scene.texts),
            rounds=rounds,
            threads=threads,
            slot_seconds=SLOT_SECONDS,
            progress=lambda _what, done, total: progress("timing layers", done, total),
        )
    return Timed({name: p50_by_round(timing.rounds_of(name)) for name in models}, _conditions(timing, scene, rounds))


def _conditions(timing: Timing, scene: Scene, rounds: int) -> dict[str, Any]:
    return {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "rounds": rounds,
        "rows": len(scene.texts),
        "busy_before": timing.busy_before,
        "stolen_seconds": timing.stolen_seconds,
        "wall_seconds": timing.wall_seconds,
    }


def measure_table(like: PreTrainedModel, scene: Scene, *, rounds: int = ROUNDS, progress: Progress) -> LatencyTable:
    """The table for models cut from `like`, from random models of its width, a dozen or more; a minute or two.

    They are written and timed in lots (`Design.lots`), so that few are on disk and loaded at once.
    """
    sizes, key = shapes(like), scene.key(like)
    lots = design(key).lots()

    def maker(depth: int, heads: int, neurons: int) -> Make:
        layers = (LayerShape(heads, key.head_size, neurons),) * depth
        return lambda: fresh_model(like, replace(sizes, layers=layers), seed=0)

    def timed(number: int) -> Timed:
        makers = {_name(model): maker(*model) for model in lots[number]}
        lot = f" (lot {number + 1} of {len(lots)})"
        return time_models(makers, scene, rounds=rounds, progress=lambda what, *counts: progress(what + lot, *counts))

    found = [timed(number) for number in range(len(lots))]
    p50 = [{model: one.p50[_name(model)] for model in lot} for one, lot in zip(found, lots, strict=True)]
    return fitted(key, p50, _together([one.conditions for one in found]))


def _name(model: Model) -> str:
    """Such as 6x12x1536."""
    return "x".join(map(str, model))


def _together(lots: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The conditions of several lots: when the first began, the busiest, and seconds summed."""
    whole = dict(lots[0])
    for name, joined in (("busy_before", max), ("stolen_seconds", sum), ("wall_seconds", sum)):
        values = [lot[name] for lot in lots if lot.get(name) is not None]
        if values:
            whole[name] = joined(values)
    return whole


@dataclass(frozen=True)
class Check:
    """The time of a pruned model beside its input's, as the table says and as measured; milliseconds."""

    predicted_before: float
    predicted_after: float
    measured_before: float
    measured_after: float
    low: float
    high: float
    """Ends of the 95 % interval of the measured share that remains; `ratio` is the share itself."""
    ratio: float
    conditions: Mapping[str, Any]

    @property
    def predicted_ratio(self) -> float:
        """Share of the time that remains by the table."""
        return self.predicted_after / self.predicted_before

    @property
    def percent_off(self) -> float:
        """How far the predicted share is above (below: negative) the measured one.

        Shares are compared, as a machine that is slower today than when the table was measured slows both models.
        """
        return 100.0 * (self.predicted_ratio / self.ratio - 1.0)

    def decisions(self) -> list[Decision]:
        """What was predicted and measured, and a warning where they are far apart."""
        off, within = self.percent_off, f"{self.ratio:.3f}x measured ({self.low:.3f}x to {self.high:.3f}x)"
        found = [
            Decision(
                kind="latency",
                chosen=f"{self.measured_after:.3g} ms of {self.measured_before:.3g} ms remain",
                because=f"{within} beside {self.predicted_ratio:.3f}x predicted: {off:+.1f} % off",
                candidates={
                    "predicted": {"before_ms": self.predicted_before, "after_ms": self.predicted_after},
                    "measured": {
                        "before_ms": round(self.measured_before, 4), "after_ms": round(self.measured_after, 4)
                    },
                },
                cost={"percent_off": round(off, 2)},
            )
        ]  # fmt: skip
        if abs(off) > MOST_OFF:
            why = (
                f"until.latency: the table of layers' times was {off:+.1f} % off, within {MOST_OFF:g} % is expected "
                f"({within}, {self.predicted_ratio:.3f}x predicted): prune again when the machine is quiet"
            )
            found.append(Decision(kind="latency table", chosen=None, because=why))
        return found


def check_latency(
    before: PreTrainedModel, after: PreTrainedModel, table: LatencyTable, scene: Scene, *, progress: Progress
) -> Check:
    """Input and result timed side by side, beside what the table says of them."""
    timed = time_models({"input": lambda: before, "result": lambda: after}, scene, progress=progress)
    ratio = ratio_interval(timed.p50["result"], timed.p50["input"])
    medians = {name: sorted(rounds)[len(rounds) // 2] for name, rounds in timed.p50.items()}
    return Check(
        predicted_before=table.total(shapes(before).layers),
        predicted_after=table.total(shapes(after).layers),
        measured_before=medians["input"],
        measured_after=medians["result"],
        low=ratio.low,
        high=ratio.high,
        ratio=ratio.value,
        conditions=timed.conditions,
    )


def kept_check(path: Path, key: str, measure: Callable[[], Check]) -> Check:
    """The check of an earlier try of the same pruning, kept in `path` under its `key`; else measured now and kept."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("key") == key:
            return Check(**content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    found = measure()
    write_atomically(path, json.dumps({"key": key, **asdict(found)}).encode())
    return found


def table_decision(table: LatencyTable) -> Decision:
    """How the table was made, with the times of the models it was fitted to."""
    key, made = table.key, "measured" in table.conditions
    rounds = (
        f"{len(table.points)} models of {key.hidden} wide layers, {table.conditions.get('rounds')} rounds each in "
        f"{key.engine} on {key.threads} threads, {table.conditions.get('measured')}; the sum of the parts is at most "
        f"{100 * table.misfit:.1f} % off their times"
    )
    sizes = "any count of neurons" if table.step == 1 else f"neurons in multiples of {table.step}, as others cost more"
    return Decision(
        kind="latency table",
        chosen=f"{table.rest_ms:.3g} ms outside the layers; {sizes}",
        because=rounds if made else "a smoke run measures nothing: times follow multiply-accumulates",
        candidates=[asdict(point) for point in table.points] or None,
    )
