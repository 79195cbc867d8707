"""Layers timed and pruned by: what is written and timed, told, refused, and measured again."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from layer_clock import milliseconds

from compressor.bench.isolation import Slot, Timing
from compressor.data.rows import DataSets
from compressor.errors import InputError
from compressor.model.encoders import load_model, model_logits
from compressor.model.manifest import LayerShape, read_manifest
from compressor.model.parts import shapes
from compressor.model.surgery import cut, keep_all
from compressor.prune import plan as plan_module
from compressor.prune import steps as steps_module
from compressor.prune import timing
from compressor.prune.latency_table import Place
from compressor.prune.pruner import Pruner
from compressor.prune.scoring import row_inputs
from compressor.prune.timing import Make, Scene, Timed, check_latency, measure_table, scene_of, time_models, write_model
from compressor.runtime.predictor import load
from compressor.stage import Decision, silent

torch.set_num_threads(1)
BOTH = {"heads": "taylor", "ffn": "taylor"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESSOR_CACHE", str(tmp_path / "cache"))


def test_a_model_is_written_as_its_engine_runs_it_and_stays_as_it_was(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets
):
    model = load_model(tiny_classifier)
    kept = keep_all(shapes(model))
    small = cut(model, replace(kept, heads=((0, 2), ()), neurons=(tuple(range(9)), tuple(range(64)))))
    attention = small.config._attn_implementation
    for engine in ("onnxruntime", "torch"):
        scene = scene_of(tiny_classifier, rows, Place(engine), seed=1)
        folder = write_model(small, tmp_path / engine, scene)
        predictor = load(folder, engine=engine, spinning=False)
        assert predictor.engine == engine
        assert read_manifest(folder).shapes == shapes(small)
        encoded = predictor.encoder.encode(list(scene.texts[:1]))
        assert scene.lengths[0] == encoded.lengths[0]
        inputs = row_inputs(encoded, [0], predictor.encoder.pad_id)
        wanted = model_logits(small, inputs)
        assert np.abs(predictor.logits(scene.texts[:1]) - wanted.numpy()).max() < 1e-4
    assert small.config._attn_implementation == attention


def test_models_are_timed_in_turn_each_on_the_same_rows_with_the_same_threads(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets, monkeypatch: pytest.MonkeyPatch
):
    asked: dict = {}

    def in_turn(commands, **settings) -> Timing:
        asked.update(settings, commands=commands)
        files = [command.command[command.command.index("--rows") + 1] for command in commands]
        asked["rows read"] = [len(Path(file).read_text().splitlines()) for file in files]
        slots = [
            Slot(command.name, number, 0, (0,), (1_000_000 * (1 + place),) * 3)
            for number in range(2)
            for place, command in enumerate(commands)
        ]
        return Timing(tuple(slots), 3, None, {}, 0.0, None, None, None)

    monkeypatch.setattr(timing, "time_in_turn", in_turn)
    model = load_model(tiny_classifier)
    scene = scene_of(tiny_classifier, rows, Place(threads=3), seed=1)
    found = time_models({"one": lambda: model, "two": lambda: model}, scene, rounds=2, progress=silent)
    assert found.p50 == {"one": [1.0, 1.0], "two": [2.0, 2.0]}
    assert asked["threads"] == 3
    assert asked["rows read"] == [len(scene.texts)] * 2
    for command in asked["commands"]:
        line = command.command
        assert (line[line.index("--threads") + 1], line[line.index("--engine") + 1]) == ("3", "onnxruntime")
        assert command.env["OMP_NUM_THREADS"] == "3"


def recording(told: list[list[str]], of: Callable[[Sequence[LayerShape]], float] = milliseconds):
    """A clock that gives made-up times and says what it was asked to time."""

    def clock(models: Mapping[str, Make], scene: Scene, *, rounds: int = 3, progress=silent) -> Timed:
        told.append(list(models))
        found = {name: of(shapes(make()).layers) for name, make in models.items()}
        return Timed({name: [ms, 1.2 * ms, 0.9 * ms] for name, ms in found.items()}, {"measured": "today", "rounds": 3})

    return clock


def test_a_table_is_measured_from_models_of_the_width_of_the_one_that_is_cut(
    tiny_classifier: Path, rows: DataSets, monkeypatch: pytest.MonkeyPatch
):
    told: list[list[str]] = []
    monkeypatch.setattr(timing, "time_models", recording(told))
    model = load_model(tiny_classifier)
    found = measure_table(model, scene_of(tiny_classifier, rows, Place(), seed=1), progress=silent)
    assert {lot[0] for lot in told} == {"2x4x64"}
    assert max(map(len, told)) <= 5
    assert len({name for lot in told for name in lot}) == len(found.points) <= 13
    assert found.key.activation == model.config.hidden_act
    for layers in ([LayerShape(4, 8, 64)] * 2, [LayerShape(0, 8, 16), LayerShape(3, 8, 0)]):
        assert found.total(layers) == pytest.approx(milliseconds(layers), abs=1e-3)


def pruned(
    tmp_path: Path, model: Path, rows: DataSets, monkeypatch: pytest.MonkeyPatch, said: list[Decision], **settings
):
    told: list[list[str]] = []
    monkeypatch.setattr(timing, "time_models", settings.pop("clock", None) or recording(told))
    settings = {"remove": BOTH, "until": {"latency": "0.7x"}, **settings}
    out = Pruner(model, data=rows, decide=said.append, **settings).fit(tmp_path / "pruned", work=tmp_path / "work")
    return out, told


def test_pruning_to_a_latency_meets_it_by_the_table_and_tells_the_measured_time_beside(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets, monkeypatch: pytest.MonkeyPatch
):
    said: list[Decision] = []
    out, told = pruned(tmp_path, tiny_classifier, rows, monkeypatch, said, steps=2)
    before, after = (milliseconds(shapes(load_model(folder)).layers) for folder in (tiny_classifier, out))
    assert 0.5 * before < after <= 0.7 * before + 2e-3
    assert told[-1] == ["input", "result"]
    (check,) = [decision for decision in said if decision.kind == "latency"]
    assert check.candidates["measured"] == {
        "before_ms": pytest.approx(before, abs=1e-3),
        "after_ms": pytest.approx(after, abs=1e-3),
    }
    assert abs(check.cost["percent_off"]) < 5
    assert said[0].kind == "latency table"
    assert len(said[0].candidates) == len({name for lot in told[:-1] for name in lot})
    made = [decision for decision in said if decision.kind == "cut"]
    assert made[-1].because.startswith("the shapes that keep most score in that time, heads by taylor")
    assert made[-1].because.endswith(" ms may remain")
    assert said[-1].kind == "pruned"
    assert " ms of " in said[-1].because
    json.dumps([vars(decision) for decision in said], allow_nan=False)


@pytest.mark.parametrize("left", [0, 1])
def test_a_model_of_hardly_any_neurons_is_pruned_to_a_latency(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets, monkeypatch: pytest.MonkeyPatch, left: int
):
    model = load_model(tiny_classifier)
    small = cut(model, replace(keep_all(shapes(model)), neurons=(tuple(range(left)),) * 2))
    scene = scene_of(tiny_classifier, rows, Place(), seed=1)
    folder = write_model(small, tmp_path / "small", replace(scene, place=Place("torch")))
    until = {"latency": "0.95x"}
    out, _ = pruned(tmp_path, folder, rows, monkeypatch, [], remove={"heads": "magnitude"}, until=until)
    assert milliseconds(shapes(load_model(out)).layers) < milliseconds(shapes(small).layers)
    write_model(load_model(out), tmp_path / "timed", scene)


def test_what_cannot_be_scored_is_refused_before_anything_is_timed(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets, monkeypatch: pytest.MonkeyPatch
):
    def never(*_: object, **__: object) -> Timed:
        raise AssertionError("a minute of timing before a mistake is told")

    remove = {**BOTH, "against": "teacher"}
    with pytest.raises(InputError, match="the model's divergence from itself"):
        pruned(tmp_path, tiny_classifier, rows, monkeypatch, [], clock=never, remove=remove)


def test_the_conditions_of_lots_are_told_as_one():
    quiet = {"measured": "at one", "busy_before": 0.1, "stolen_seconds": 0.5, "wall_seconds": 20.0}
    later = {"measured": "at two", "busy_before": 0.4, "stolen_seconds": None, "wall_seconds": 15.0}
    assert timing._together([quiet, later]) == {
        "measured": "at one", "busy_before": 0.4, "stolen_seconds": 0.5, "wall_seconds": 35.0
    }  # fmt: skip


def test_a_rerun_measures_nothing_and_tells_the_same(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets, monkeypatch: pytest.MonkeyPatch
):
    said: tuple[list[Decision], list[Decision]] = ([], [])
    pruned(tmp_path, tiny_classifier, rows, monkeypatch, said[0])

    def never(*_: object, **__: object) -> Timed:
        raise AssertionError("nothing is timed again")

    pruned(tmp_path, tiny_classifier, rows, monkeypatch, said[1], clock=never)
    assert [json.dumps(vars(each)) for each in said[0]] == [json.dumps(vars(each)) for each in said[1]]


def test_a_latency_below_the_floor_is_refused_with_the_least_in_milliseconds(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(InputError, match=r"until.latency 0.2x is below the floor") as error:
        pruned(tmp_path, tiny_classifier, rows, monkeypatch, [], until={"latency": "0.2x"})
    least = milliseconds([LayerShape(1, 8, 1)] * 2)
    found = float(str(error.value).split("leaves at least ")[1].split(" ms")[0])
    assert found == pytest.approx(least, rel=0.05)
    share = str(error.value).split("write ")[1].split(" or more")[0]
    pruned(tmp_path, tiny_classifier, rows, monkeypatch, [], until={"latency": share})


def test_a_table_that_is_far_off_is_warned_of(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets, monkeypatch: pytest.MonkeyPatch
):
    def uneven(layers: Sequence[LayerShape]) -> float:
        return milliseconds(layers) * (1.0 if len(set(layers)) == 1 else 1.5)

    said: list[Decision] = []
    pruned(tmp_path, tiny_classifier, rows, monkeypatch, said, clock=recording([], uneven))
    (warning,) = [decision for decision in said if decision.chosen is None]
    assert "within 10 % is expected" in warning.because
    assert "prune again when the machine is quiet" in warning.because


def test_a_smoke_run_measures_nothing(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets, monkeypatch: pytest.MonkeyPatch
):
    said: list[Decision] = []
    out, told = pruned(tmp_path, tiny_classifier, rows, monkeypatch, said, smoke=True)
    assert told == []
    assert "a smoke run measures nothing" in said[0].because
    assert not any(decision.kind == "latency" for decision in said)
    assert shapes(load_model(out)) != shapes(load_model(tiny_classifier))
    assert not (tmp_path / "cache").exists()


def test_another_table_is_another_pruning(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets, monkeypatch: pytest.MonkeyPatch
):
    pruned(tmp_path, tiny_classifier, rows, monkeypatch, [])
    (kept,) = (tmp_path / "cache" / "latency").iterdir()
    for path in (kept, tmp_path / "work" / plan_module.TABLE_FILE):
        path.unlink()
    made: list[int] = []
    monkeypatch.setattr(steps_module, "cut", lambda model, parts: made.append(1) or cut(model, parts))
    other = recording([], lambda layers: 2 * milliseconds(layers))
    pruned(tmp_path, tiny_classifier, rows, monkeypatch, [], clock=other)
    assert made == [1]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"until": {"macs": "0.5x"}, "engine": "torch"}, "engine says where until.latency is measured (got torch)"),
        ({"until": {"macs": "0.5x"}, "threads": 2}, "threads says where until.latency is measured (got 2)"),
        ({"until": {"latency": "0.5x"}, "engine": "fastest"}, "engine must be one of onnxruntime, torch, openvino"),
        ({"until": {"latency": "0.5x"}, "threads": 0}, "threads must be at least 1 (got 0)"),
        ({"until": {"latency": "5ms"}}, "until.latency: must be a share such as 0.5x"),
    ],
)
def test_a_place_that_cannot_be_is_refused(tiny_classifier: Path, rows: DataSets, settings: dict, text: str):
    with pytest.raises(InputError) as error:
        Pruner(tiny_classifier, data=rows, remove=BOTH, **settings)
    assert text in str(error.value)


def test_only_fp32_can_be_timed_now(tiny_classifier: Path, rows: DataSets):
    with pytest.raises(InputError, match=r"measured in fp32 alone \(got int8\); prune before you quantize"):
        scene_of(tiny_classifier, rows, Place(precision="int8"), seed=1)


def test_the_check_compares_shares_so_that_a_slower_day_changes_nothing(
    tiny_classifier: Path, rows: DataSets, monkeypatch: pytest.MonkeyPatch
):
    model = load_model(tiny_classifier)
    scene = scene_of(tiny_classifier, rows, Place(), seed=1)
    monkeypatch.setattr(timing, "time_models", recording([]))
    table = measure_table(model, scene, progress=silent)
    small = cut(model, replace(keep_all(shapes(model)), heads=((0,), (1, 2))))
    monkeypatch.setattr(timing, "time_models", recording([], lambda layers: 3 * milliseconds(layers)))
    check = check_latency(model, small, table, scene, progress=silent)
    assert abs(check.percent_off) < 0.5
    assert check.measured_before == pytest.approx(3 * check.predicted_before, rel=1e-2)
