"""Tables of layers' times from made-up clocks: what is recovered, kept, refused, and told."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import write_reviews

from compressor.bench.isolation import Slot, Timing
from compressor.data.rows import DataSets, open_data
from compressor.errors import InputError
from compressor.model.encoders import load_model, model_logits
from compressor.model.manifest import LayerShape, Shapes, read_manifest
from compressor.model.parts import shapes
from compressor.model.surgery import cut, keep_all
from compressor.prune import latency_table as tables
from compressor.prune import plan as plan_module
from compressor.prune import steps as steps_module
from compressor.prune import timing
from compressor.prune.latency_table import LatencyTable, Place, design, fitted, kept_table, key_of, read_table
from compressor.prune.pruner import Pruner
from compressor.prune.scoring import row_inputs
from compressor.prune.timing import Make, Scene, Timed, check_latency, measure_table, scene_of, time_models, write_model
from compressor.runtime.predictor import load
from compressor.stage import Decision, silent

torch.set_num_threads(1)
WIDE = Shapes(hidden=384, layers=(LayerShape(12, 32, 1536),) * 6, vocabulary=100)
KEY = key_of(WIDE, Place(), [4, 8, 9])
BOTH = {"heads": "taylor", "ffn": "taylor"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESSOR_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> DataSets:
    folder = tmp_path_factory.mktemp("rows")
    write_reviews(folder)
    data = {"train": "reviews.csv", "unlabelled": ["pool.txt"], "text": "review", "label": "stars", "max_tokens": 32}
    return open_data(data, base=folder)


def milliseconds(layers: Sequence[LayerShape]) -> float:
    """A made-up machine: a rest, a layer's own cost, heads and neurons that cost less the more there are."""
    each = [0.05 + 0.1 * min(one.heads, 1) + 0.02 * one.heads + 0.01 * one.ffn**0.7 for one in layers]
    return 0.4 + sum(each)


def times(key: tables.TableKey, of: Callable[[int, int, int], float], *, noise: float = 0.0) -> dict:
    """Five rounds of every model of a design, each round with a speed of its own, each time with noise of its own."""
    plan, draw = design(key), random.Random(0)
    speeds = [1.0, 1.3, 0.9, 1.1, 1.0]
    return {
        model: [of(*model) * speed * (1 + draw.uniform(-noise, noise)) for speed in speeds]
        for model in (*plan.models, *plan.odd)
    }


def alike(depth: int, heads: int, ffn: int) -> float:
    return milliseconds([LayerShape(heads, 32, ffn)] * depth)


def test_a_design_is_of_a_dozen_models_and_holds_the_whole_and_half_of_it():
    plan = design(KEY)
    assert plan.models[0] == (6, 12, 1536)
    assert {(3, 12, 1536), (6, 0, 0)} <= set(plan.models)
    assert len(plan.models) + len(plan.odd) <= 16
    assert all(neurons % 64 == 0 for _, _, neurons in plan.models)


def test_parts_that_add_up_are_told_apart_whatever_the_speed_of_a_round():
    found = fitted(KEY, times(KEY, alike), {})
    for heads in found.heads:
        for neurons in found.neurons:
            layers = [LayerShape(heads, 32, neurons)] * 6
            assert found.total(layers) == pytest.approx(milliseconds(layers), abs=1e-3)
    mixed = [LayerShape(0, 32, 384), LayerShape(12, 32, 0), LayerShape(4, 32, 1152), LayerShape(8, 32, 192)]
    assert found.total(mixed) == pytest.approx(milliseconds(mixed), abs=1e-3)
    assert found.rest_ms == pytest.approx(0.4, abs=1e-3)


def test_a_prediction_is_the_rest_and_the_sum_of_the_halves_of_each_layer():
    found = fitted(KEY, times(KEY, alike, noise=0.05), {})
    layers = [LayerShape(3, 32, 500), LayerShape(7, 32, 1000), LayerShape(12, 32, 64)]
    parts = [found.attention(each.heads) + found.feed_forward(each.ffn) for each in layers]
    assert found.total(layers) == pytest.approx(found.rest_ms + sum(parts), abs=1e-4)
    assert found.total(layers) == found.total(layers[::-1])


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.4])
def test_more_parts_never_take_less_time(noise: float):
    found = fitted(KEY, times(KEY, alike, noise=noise), {})
    heads = [found.attention(count) for count in range(13)]
    neurons = [found.feed_forward(count) for count in range(0, 1537, 16)]
    assert heads == sorted(heads)
    assert neurons == sorted(neurons)
    assert neurons[0] == 0.0
    assert min(heads) >= 0.0


def test_halves_that_do_not_add_up_show_in_the_misfit():
    def together(depth: int, heads: int, ffn: int) -> float:
        return alike(depth, heads, ffn) + depth * 0.1 * (heads / 12) * (ffn / 1536)

    assert fitted(KEY, times(KEY, alike), {}).misfit < 1e-6
    assert fitted(KEY, times(KEY, together), {}).misfit > 0.005


@pytest.mark.parametrize(("block", "step"), [(1, 1), (16, 16), (64, 64)])
def test_sizes_are_rounded_to_what_the_clock_shows_to_pay(block: int, step: int):
    def stepped(depth: int, heads: int, ffn: int) -> float:
        """An odd count costs as much as the next whole block, and a tenth for not being one."""
        odd = 1.1 if ffn % block else 1.0
        return odd * milliseconds([LayerShape(heads, 32, -(-ffn // block) * block)] * depth)

    found = fitted(KEY, times(KEY, stepped), {})
    assert found.step == step
    narrow = key_of(Shapes(32, (LayerShape(4, 8, 64),) * 2, 100), Place(), [4])
    assert fitted(narrow, times(narrow, stepped), {}).step == 1


def test_a_size_that_is_slower_by_less_than_it_is_worth_is_kept():
    found = fitted(KEY, times(KEY, lambda *model: alike(*model) * (1.005 if model[2] % 64 else 1.0)), {})
    assert found.step == 1


def counting(made: list[int]) -> Callable[[], LatencyTable]:
    def measure() -> LatencyTable:
        made.append(1)
        return fitted(KEY, times(KEY, alike, noise=0.01), {"measured": "today", "rounds": 5})

    return measure


def test_a_table_is_measured_once_and_read_again_unchanged(tmp_path: Path):
    made: list[int] = []
    first = kept_table(KEY, tmp_path / "one.json", counting(made))
    again = kept_table(KEY, tmp_path / "two.json", counting(made))
    assert made == [1]
    assert again == first
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_a_run_that_goes_on_keeps_the_table_it_began_with(tmp_path: Path):
    made: list[int] = []
    first = kept_table(KEY, tmp_path / "own.json", counting(made))
    tables.write_table(tables.table_path(KEY), replace(first, rest_ms=99.0))
    assert kept_table(KEY, tmp_path / "own.json", counting(made)) == first


@pytest.mark.parametrize(
    "change",
    [
        {"machine": "another"},
        {"threads": 7},
        {"engine": "torch"},
        {"precision": "int8"},
        {"hidden": 768},
        {"lengths": "other"},
        {"versions": {"onnxruntime": "0"}},
        {"layers": 12},
    ],
)
def test_a_table_of_another_place_width_or_mix_of_lengths_is_measured_anew(tmp_path: Path, change: dict):
    made: list[int] = []
    kept_table(KEY, tmp_path / "own.json", counting(made))
    other = replace(KEY, **change)
    assert read_table(tmp_path / "own.json", other) is None
    kept_table(other, tmp_path / "own.json", lambda: replace(counting(made)(), key=other))
    assert made == [1, 1]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": {}}', "null"])
def test_a_torn_table_is_measured_anew(tmp_path: Path, text: str):
    path = tmp_path / "own.json"
    path.write_text(text)
    assert read_table(path, KEY) is None


def test_the_order_of_the_rows_is_no_other_mix_of_lengths():
    assert key_of(WIDE, Place(), [9, 4, 8]) == KEY
    assert key_of(WIDE, Place(), [9, 4, 7]) != KEY


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
    assert told[0][0] == "2x4x64"
    assert len(told[0]) == len(found.points) <= 13
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
    assert len(said[0].candidates) == len(told[0])
    assert said[-1].kind == "pruned"
    assert " ms of " in said[-1].because
    json.dumps([vars(decision) for decision in said], allow_nan=False)


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
