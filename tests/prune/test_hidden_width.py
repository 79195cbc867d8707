"""The hidden width goes alone in a stage: to the target, in steps, with recovery, again, and into the report."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny import write_tiny_bert

from compressor.data.rows import DataSets
from compressor.errors import InputError
from compressor.model.encoders import load_model, model_logits
from compressor.model.footprint import macs, parameters
from compressor.model.importance import Scores
from compressor.model.manifest import LayerShape, Shapes, read_manifest
from compressor.model.parts import shapes
from compressor.model.surgery import Kept, keep_all, masked
from compressor.prune import width as width_module
from compressor.prune.next_cut import next_taken
from compressor.prune.pruner import Pruner
from compressor.prune.scoring import draw_sample, row_inputs, score_parts
from compressor.prune.settings import Remove, Until
from compressor.prune.steps import renumber
from compressor.prune.targets import priced_by_width
from compressor.prune.width import Widths, choose_width, widths_of
from compressor.report.outline import pruned, scored
from compressor.report.why import why
from compressor.runner.pruned import pruning
from compressor.runner.shapes import Known, Shape, check_maps
from compressor.stage import Decision, Outcome, settings_of, silent
from compressor.stages.prune import Prune

torch.set_num_threads(1)
TAYLOR = {"hidden": "taylor"}


def sizes(hidden: int) -> Shapes:
    return Shapes(hidden=hidden, layers=(LayerShape(4, 8, 64),) * 2, vocabulary=50)


def test_widths_are_multiples_of_eight_unless_the_model_is_too_narrow_for_kernels_to_care():
    assert widths_of(sizes(64)) == [8, 16, 24, 32, 40, 48, 56, 64]
    assert widths_of(sizes(100))[-3:] == [88, 96, 100]
    assert widths_of(sizes(32)) == list(range(8, 33))
    assert widths_of(sizes(64), projected_from=32) == [8, 16, 24, 40, 48, 56, 64]
    assert widths_of(sizes(6)) == [6]


def test_the_channels_of_greatest_score_stay_in_the_greatest_width_that_fits():
    widths = Widths("macs", {width: 100 * width for width in (8, 16, 24, 32)})
    scores = torch.arange(32, dtype=torch.float64)
    scores[3] = 99.0
    choice = choose_width(sizes(32), scores, widths, budget=1700)
    assert choice.kept.hidden == (3, *range(17, 32))
    assert choice.lost == pytest.approx(sum(range(17)) - 3)
    assert choice.layers == ()
    assert (choice.kept.heads, choice.kept.layers) == (keep_all(sizes(32)).heads, (0, 1))
    assert choose_width(sizes(16), scores[:16], widths, budget=1e9).kept.hidden == tuple(range(16))


@pytest.mark.parametrize("until", [{"macs": "0.6x"}, {"parameters": "0.5x"}, {"bytes": "0.7x"}, {"bytes": "70kB"}])
def test_the_target_is_met_by_less_than_one_channel(tmp_path: Path, tiny_classifier: Path, rows: DataSets, until: dict):
    out = Pruner(tiny_classifier, data=rows, remove=TAYLOR, until=until).fit(tmp_path / "pruned")
    whole, small = load_model(tiny_classifier), load_model(out)
    (quantity, text), = until.items()  # fmt: skip
    full = {"macs": macs(shapes(whole)), "parameters": parameters(whole)}.get(quantity)
    full = full or (tiny_classifier / "model.safetensors").stat().st_size
    found = {"macs": macs(shapes(small)), "parameters": parameters(small)}.get(quantity)
    found = found or (out / "model.safetensors").stat().st_size
    budget = 70_000 if text == "70kB" else float(text[:-1]) * full
    assert budget - full / 32 * 1.5 < found <= budget
    assert parameters(small) < parameters(whole)
    assert macs(shapes(small)) < macs(shapes(whole))
    assert [(each.heads, each.head_size, each.ffn) for each in shapes(small).layers] == [(4, 8, 64)] * 2


def test_declared_shapes_are_those_of_the_tensors_in_the_file(tmp_path: Path, tiny_classifier: Path, rows: DataSets):
    out = Pruner(tiny_classifier, data=rows, remove=TAYLOR, until={"macs": "0.6x"}).fit(tmp_path / "pruned")
    declared = read_manifest(out).shapes
    assert declared == shapes(load_model(out))
    with safe_open(out / "model.safetensors", "np") as file:
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    hidden = declared.hidden
    assert json.loads((out / "config.json").read_text())["hidden_size"] == hidden < 32
    assert found["bert.embeddings.word_embeddings.weight"] == [declared.vocabulary, hidden]
    assert found["bert.embeddings.LayerNorm.weight"] == [hidden]
    assert found["bert.encoder.layer.1.attention.self.query.weight"] == [32, hidden]
    assert found["bert.encoder.layer.1.attention.output.dense.weight"] == [hidden, 32]
    assert found["bert.encoder.layer.1.output.LayerNorm.bias"] == [hidden]
    assert found["bert.pooler.dense.weight"] == [hidden, hidden]
    assert found["classifier.weight"] == [2, hidden]


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "activation", "magnitude", "random"])
def test_every_criterion_leaves_what_the_masked_model_answers_on_real_rows(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets, criterion: str
):
    said: list[Decision] = []
    remove = {"hidden": criterion}
    pruner = Pruner(tiny_classifier, data=rows, remove=remove, until={"macs": "0.7x"}, decide=said.append)
    out = pruner.fit(tmp_path / "pruned")
    (first,) = [decision for decision in said if decision.kind == "cut"]
    assert f"the channels of least score, hidden channels by {criterion}" in first.because
    scores = {each["channel"]: each["score"] for each in first.candidates}
    assert sorted(scores) == list(range(32))
    model, settings = load_model(tiny_classifier), settings_of(Remove, remove, "remove")
    sample = draw_sample(rows, tiny_classifier, teacher=None, remove=settings, seed=17, smoke=False)
    found = score_parts(model, settings, sample, seed=18, progress=silent).hidden
    widths = priced_by_width(Until(macs="0.7x"), model)
    choice = choose_width(shapes(model), found, widths, budget=0.7 * widths.totals[32])
    assert len(choice.kept.hidden) == first.chosen["hidden"] == shapes(load_model(out)).hidden
    inputs = row_inputs(sample.encoded, sample.order, sample.pad_id)
    with masked(model, choice.kept):
        reference = model_logits(model, inputs)
    assert float((model_logits(load_model(out), inputs) - reference).abs().max()) < 1e-5
    assert first.cost["this cut"]["hidden"] == 32 - first.chosen["hidden"]
    assert first.cost["this cut"]["score"] == pytest.approx(choice.lost)
    assert first.cost["next cut"]["hidden"] > 0


def test_the_next_cut_of_channels_is_of_those_that_score_least_of_the_rest():
    widths = Widths("macs", {width: 100 * width for width in (8, 16, 24, 32)})
    scores = torch.arange(32, dtype=torch.float64)
    nothing = (torch.zeros(0),) * 2
    given = Scores(nothing, nothing, torch.zeros(2), hidden=scores)
    kept = choose_width(sizes(32), scores, widths, budget=2400).kept
    found = next_taken(sizes(32), kept, given, widths, remove=frozenset({"hidden"}), amount=800)
    assert found is not None
    assert (found.hidden, found.amount, found.score) == (8, 800, sum(range(8, 16)))
    last = choose_width(sizes(32), scores, widths, budget=800).kept
    assert next_taken(sizes(32), last, given, widths, remove=frozenset({"hidden"}), amount=800) is None


def test_renumbering_follows_a_channel_through_two_cuts():
    heads, neurons = ((0, 1),) * 2, ((0,),) * 2
    origin = Kept(heads, neurons, (0, 1), (1, 4, 7, 9))
    assert renumber(origin, Kept(heads, neurons, (0, 1), (0, 3))).hidden == (1, 9)
    assert renumber(origin, Kept(heads, neurons, (0, 1))).hidden == (1, 4, 7, 9)
    assert renumber(Kept(heads, neurons, (0, 1)), Kept(heads, neurons, (0, 1), (2,))).hidden == (2,)
    assert renumber(Kept(heads, neurons, (0, 1)), Kept(heads, neurons, (0, 1))).hidden is None


def test_the_width_falls_in_steps_with_recovery_and_an_interrupted_run_ends_the_same(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets
):
    recover = {"train": {"steps": 4, "learning_rate": 1e-3}}
    settings = {"data": rows, "remove": TAYLOR, "until": {"macs": "0.5x"}, "steps": 2, "recover": recover}
    first, again = list[Decision](), list[Decision]()
    whole = Pruner(tiny_classifier, **settings, decide=first.append).fit(tmp_path / "whole", work=tmp_path / "work")
    cuts = [decision for decision in first if decision.kind == "cut"]
    assert 32 > cuts[0].chosen["hidden"] > cuts[1].chosen["hidden"] == shapes(load_model(whole)).hidden
    assert {each["channel"] for each in cuts[1].candidates} < {each["channel"] for each in cuts[0].candidates}
    assert len((tmp_path / "work" / "steps.jsonl").read_text().splitlines()) == 4

    def stop(decision: Decision) -> None:
        if decision.kind == "cut" and decision.chosen["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pruner(tiny_classifier, **settings, decide=stop).fit(tmp_path / "stopped")
    out = Pruner(tiny_classifier, **settings, decide=again.append).fit(tmp_path / "stopped")
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert [json.dumps(vars(each)) for each in again] == [json.dumps(vars(each)) for each in first]


def test_a_gate_keeps_the_width_of_the_last_step_that_passed(tmp_path: Path, tiny_classifier: Path, rows: DataSets):
    said, judged = list[Decision](), list[Path]()

    def accept(folder: Path) -> Outcome:
        judged.append(folder)
        return Outcome("pass", len(judged) < 2, "accuracy fell", {"accuracy": (0.09, 0.05, 0.13)})

    settings = {"data": rows, "remove": {"hidden": "magnitude"}, "until": {"macs": "0.4x"}, "steps": 3}
    out = Pruner(tiny_classifier, **settings, decide=said.append).fit(tmp_path / "pruned", accept=accept)
    (back,) = [decision for decision in said if decision.kind == "backtrack"]
    assert shapes(load_model(out)).hidden == back.chosen["hidden"] > back.candidates["hidden"]
    assert macs(shapes(load_model(out))) == back.chosen["macs"] > back.candidates["macs"]


def test_heads_after_the_width_and_the_width_after_heads(tmp_path: Path, tiny_classifier: Path, rows: DataSets):
    units = {"heads": "taylor", "ffn": "taylor", "layers": "taylor"}
    narrow = Pruner(tiny_classifier, data=rows, remove=TAYLOR, until={"macs": "0.7x"}).fit(tmp_path / "narrow")
    both = Pruner(narrow, data=rows, remove=units, until={"macs": "0.6x"}).fit(tmp_path / "both")
    assert shapes(load_model(both)).hidden == shapes(load_model(narrow)).hidden < 32
    assert macs(shapes(load_model(both))) <= 0.6 * macs(shapes(load_model(narrow)))
    small = Pruner(tiny_classifier, data=rows, remove=units, until={"macs": "0.5x"}).fit(tmp_path / "small")
    again = Pruner(small, data=rows, remove={"hidden": "fisher"}, until={"parameters": "0.7x"}).fit(tmp_path / "again")
    assert shapes(load_model(again)).layers == shapes(load_model(small)).layers
    assert parameters(load_model(again)) <= 0.7 * parameters(load_model(small))


def test_a_wide_model_keeps_a_multiple_of_eight(tmp_path: Path, rows: DataSets, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(width_module, "NARROW", 32)
    model = write_tiny_bert(tmp_path / "model", labels=("bad", "good"))
    out = Pruner(model, data=rows, remove=TAYLOR, until={"macs": "0.7x"}).fit(tmp_path / "pruned")
    assert shapes(load_model(out)).hidden == 16
    with pytest.raises(InputError, match=r"until.macs 0.2x is below the floor: removing hidden leaves at least"):
        Pruner(model, data=rows, remove=TAYLOR, until={"macs": "0.2x"}).fit(tmp_path / "refused")


@pytest.mark.parametrize(
    ("remove", "until", "text"),
    [
        (
            {**TAYLOR, "heads": "taylor", "ffn": "taylor"},
            {"macs": "0.5x"},
            "remove.hidden goes alone in a stage (got ffn and heads beside it), as it changes what every other part "
            "weighs; write two prune stages, the second with remove: {hidden: taylor}",
        ),
        ({**TAYLOR, "vocabulary": "unseen"}, {"bytes": "0.5x"}, "(got vocabulary beside it)"),
        (TAYLOR, {"latency": "0.5x"}, "until.latency is searched for in a table of times of one hidden width"),
        (TAYLOR, {"heads": "0.5x"}, "until.heads counts what remove.hidden leaves as it is; write macs, parameters"),
        (TAYLOR, {"macs": "1x"}, "until.macs must be below 1x"),
        ({**TAYLOR, "normalise": True}, {"macs": "0.5x"}, "has normalise, which is for the heads and neurons"),
        ({"hidden": "magnitude", "against": "labels"}, {"macs": "0.5x"}, "nothing here reads a loss (magnitude)"),
    ],
)
def test_what_the_width_cannot_go_with_is_refused_by_the_stage_and_the_class(
    tiny_classifier: Path, rows: DataSets, remove: dict, until: dict, text: str
):
    with pytest.raises(InputError) as error:
        Pruner(tiny_classifier, data=rows, remove=remove, until=until)
    assert text in str(error.value)
    with pytest.raises(ValueError, match=r"remove|until") as refused:
        Prune.model_validate({"id": "slim", "remove": remove, "until": until})
    assert text in str(refused.value)


def test_reconstruction_beside_the_width_is_refused(tiny_classifier: Path, rows: DataSets):
    with pytest.raises(InputError, match="has reconstruct, which fits what the layers write to an uncut model of the"):
        Pruner(tiny_classifier, data=rows, remove=TAYLOR, until={"macs": "0.5x"}, reconstruct=True)


def test_two_prunings_in_a_row_cut_parts_and_then_the_width(tmp_path: Path, tiny_classifier: Path, rows: DataSets):
    parts = {"remove": {"heads": "taylor", "ffn": "taylor"}, "until": {"macs": "0.7x"}}
    slim = Pruner(tiny_classifier, data=rows, **parts).fit(tmp_path / "slim")
    narrow = Pruner(slim, data=rows, remove=TAYLOR, until={"bytes": "0.8x"}).fit(tmp_path / "narrow")
    whole, first, second = (shapes(load_model(each)) for each in (tiny_classifier, slim, narrow))
    assert first.hidden == whole.hidden > second.hidden
    assert first.layers == second.layers != whole.layers
    sizes = [(each / "model.safetensors").stat().st_size for each in (slim, narrow)]
    assert sizes[1] <= 0.8 * sizes[0]


@pytest.mark.parametrize("remove", [TAYLOR, {"halves": "taylor"}])
def test_terms_of_a_recovery_are_checked_before_anything_runs(remove: dict):
    shape = Shape(layers=2, hidden=32, ffn=64, heads=4, channels=32)
    known = Known(output={"teacher": shape}, encoder={"slim": shape})
    for term, said in (({"of": "relations", "heads": 5}, "heads must"), ({"of": "hidden", "map": "1:3"}, "layer 3")):
        settings = {"remove": remove, "until": {"macs": "0.7x"}, "recover": {"match": [term]}}
        with pytest.raises(InputError, match=said):
            check_maps([Prune.model_validate({"id": "slim", "from": "teacher", **settings})], known, 1)


def test_the_report_tells_the_width_beside_the_layers(tmp_path: Path, tiny_classifier: Path, rows: DataSets):
    said: list[Decision] = []
    settings = {"data": rows, "remove": TAYLOR, "until": {"macs": "0.6x"}, "decide": said.append}
    out = Pruner(tiny_classifier, **settings).fit(tmp_path / "pruned")
    kept = shapes(load_model(out)).hidden
    told = pruning("narrow", [vars(decision) for decision in said])
    assert told is not None
    assert told["hidden"] == {"kept": kept, "before": 32}
    assert f"{kept} of 32 hidden channels remain; no whole layer was to be removed" in told["because"]
    section = pruned(told, 0)
    assert section.heads == ("layer", "heads kept", "neurons kept", "width kept", "whole layer")
    assert [[cell.text for cell in row] for row in section.rows] == [
        [str(layer), "4 of 4", "64 of 64", f"{kept} of 32", "kept"] for layer in range(2)
    ]
    assert scored(told, 0).rows == ()
    assert "hidden" in why("narrow", [vars(decision) for decision in said])


def test_of_a_stage_that_leaves_the_width_no_column_stands_there(tmp_path: Path, tiny_classifier: Path, rows: DataSets):
    said: list[Decision] = []
    settings = {"data": rows, "remove": {"halves": "magnitude"}, "until": {"macs": "0.5x"}, "decide": said.append}
    Pruner(tiny_classifier, **settings).fit(tmp_path / "pruned")
    told = pruning("slim", [vars(decision) for decision in said])
    assert told is not None
    section = pruned(told, 0)
    assert section.heads == ("layer", "heads kept", "neurons kept", "whole layer")
    halves = [line for line in told["because"].split("; ") if "half of layer" in line]
    assert halves
    assert all("half removed: " in row[-1].note or "half kept: " in row[-1].note for row in section.rows)
