import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import write_tiny_bert

from compressor.data.rows import DataSets, Rows
from compressor.errors import GateError, InputError, StageError
from compressor.model.encoders import load_model
from compressor.model.footprint import heads, macs, neurons, parameters
from compressor.model.manifest import read_manifest
from compressor.model.parts import shapes
from compressor.model.surgery import Kept, cut, keep_all
from compressor.prune import steps as steps_module
from compressor.prune.pruner import Pruner
from compressor.prune.scoring import cross_entropy, divergence, draw_sample, masked_loss, score_parts
from compressor.prune.settings import Remove
from compressor.prune.steps import renumber
from compressor.prune.targets import share_of_train
from compressor.stage import Decision, Outcome, silent
from compressor.train.settings import Train

torch.set_num_threads(1)
TAYLOR = {"heads": "taylor", "ffn": "taylor"}


def outcome(*, passed: bool) -> Outcome:
    return Outcome("pass" if passed else "fail", passed, "accuracy fell by 9pp", {"accuracy": (0.09, 0.05, 0.13)})


@pytest.mark.parametrize(
    ("remove", "until", "measure"),
    [
        (TAYLOR, {"macs": "0.5x"}, lambda model: macs(shapes(model))),
        (TAYLOR, {"parameters": "0.7x"}, parameters),
        ({"heads": "magnitude"}, {"heads": "0.5x"}, lambda model: heads(shapes(model))),
        ({"ffn": "random"}, {"ffn": "0.25x"}, lambda model: neurons(shapes(model))),
        ({"heads": "taylor", "ffn": "magnitude"}, {"macs": "0.4x"}, lambda model: macs(shapes(model))),
        ({"layers": "taylor"}, {"macs": "0.5x"}, lambda model: macs(shapes(model))),
        ({"halves": "taylor"}, {"macs": "0.7x"}, lambda model: macs(shapes(model))),
        ({"halves": "activation"}, {"heads": "0.5x"}, lambda model: heads(shapes(model))),
        ({**TAYLOR, "halves": "taylor"}, {"parameters": "0.6x"}, parameters),
        ({"layers": "fisher", "halves": "fisher"}, {"macs": "0.3x"}, lambda model: macs(shapes(model))),
        ({**TAYLOR, "layers": "random", "halves": "magnitude"}, {"macs": "0.3x"}, lambda model: macs(shapes(model))),
        ({**TAYLOR, "layers": "taylor"}, {"macs": "0.3x"}, lambda model: macs(shapes(model))),
    ],
)
def test_the_target_is_met_in_the_saved_folder(tmp_path, tiny_classifier, rows, remove, until, measure):
    out = Pruner(tiny_classifier, data=rows, remove=remove, until=until).fit(tmp_path / "pruned")
    before, after = measure(load_model(tiny_classifier)), measure(load_model(out))
    assert 0 < after <= float(next(iter(until.values()))[:-1]) * before
    assert read_manifest(out).shapes == shapes(load_model(out))
    assert read_manifest(out).labels == ("bad", "good")
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]


@pytest.mark.parametrize("target", ["0.8x", "70kB"])
def test_the_saved_file_has_at_most_the_bytes_that_may_remain(tmp_path, tiny_classifier, rows, target):
    before = (tiny_classifier / "model.safetensors").stat().st_size
    out = Pruner(tiny_classifier, data=rows, remove=TAYLOR, until={"bytes": target}).fit(tmp_path / "pruned")
    after = (out / "model.safetensors").stat().st_size
    most = 0.8 * before if target == "0.8x" else 70_000
    assert most - 2000 < after <= most


def test_a_size_that_the_model_has_already_is_refused(tmp_path: Path, tiny_classifier: Path, rows: DataSets):
    pruner = Pruner(tiny_classifier, data=rows, remove=TAYLOR, until={"bytes": "40MB"})
    with pytest.raises(InputError, match=r"until.bytes 40MB would remove nothing: the model has 0.\d+ MB; write less"):
        pruner.fit(tmp_path / "pruned")
    smoke = Pruner(tiny_classifier, data=rows, remove=TAYLOR, until={"bytes": "40MB"}, smoke=True)
    assert parameters(load_model(smoke.fit(tmp_path / "smoke"))) < parameters(load_model(tiny_classifier))


def test_pruning_twice_with_one_seed_gives_the_same_bytes(tmp_path: Path, tiny_classifier: Path, rows: DataSets):
    made = [
        Pruner(tiny_classifier, data=rows, remove=TAYLOR, until={"macs": "0.5x"}, steps=2).fit(tmp_path / name)
        for name in ("one", "two")
    ]
    assert (made[0] / "model.safetensors").read_bytes() == (made[1] / "model.safetensors").read_bytes()


def test_decisions_name_what_is_left_in_the_inputs_numbering(tmp_path: Path, tiny_classifier: Path, rows: DataSets):
    said: list[Decision] = []
    remove = {**TAYLOR, "layers": "random"}
    pruner = Pruner(tiny_classifier, data=rows, remove=remove, until={"macs": "0.4x"}, steps=3, decide=said.append)
    out = pruner.fit(tmp_path / "pruned")
    cuts = [decision for decision in said if decision.kind == "cut"]
    assert [decision.chosen["step"] for decision in cuts] == [1, 2, 3]
    assert any(decision.kind == "layer" for decision in said)
    assert [len(layer["heads"]) for layer in cuts[0].candidates] == [4, 4]
    final = said[-1]
    assert final.kind == "pruned"
    whole, small = load_model(tiny_classifier), load_model(out)
    kept = final.chosen["layers"]
    assert [(len(each["heads"]), each["ffn"]) for each in kept] == [
        (each.heads, each.ffn) for each in shapes(small).layers
    ]
    for layer, each in zip(small.bert.encoder.layer, kept, strict=True):
        original = whole.bert.encoder.layer[each["layer"]].attention.self.query.weight
        channels = [head * 8 + offset for head in each["heads"] for offset in range(8)]
        if channels:
            assert torch.equal(layer.attention.self.query.weight, original[channels])
    json.dumps([vars(decision) for decision in said], allow_nan=False)


def test_a_target_below_the_floor_is_refused_with_the_floor(tmp_path: Path, tiny_classifier: Path, rows: DataSets):
    pruner = Pruner(tiny_classifier, data=rows, remove={"heads": "taylor"}, until={"heads": "0.1x"})
    with pytest.raises(InputError) as error:
        pruner.fit(tmp_path / "pruned")
    assert "until.heads 0.1x is below the floor" in str(error.value)
    assert "leaves at least 2 of 8, a head in each layer; write 0.25x or more" in str(error.value)


def test_where_nothing_more_can_go_the_refusal_says_what_would_help(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets
):
    remove = {"heads": "magnitude"}
    single = Pruner(tiny_classifier, data=rows, remove=remove, until={"heads": "0.25x"}).fit(tmp_path / "single")
    for until, said in (
        ({"heads": "0.5x"}, "in each layer; nothing that counts of heads can go; let layers or halves go in remove"),
        ({"macs": "0.9x"}, "nothing that counts of heads can go; let ffn, layers or halves go in remove"),
    ):
        with pytest.raises(InputError) as error:
            Pruner(single, data=rows, remove=remove, until=until).fit(tmp_path / "more")
        assert said in str(error.value)


def test_a_pruning_that_changes_nothing_is_an_error(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(steps_module, "cut", lambda model, _kept: model)
    pruner = Pruner(tiny_classifier, data=rows, remove=TAYLOR, until={"macs": "0.5x"})
    with pytest.raises(StageError, match="changed no parameter"):
        pruner.fit(tmp_path / "pruned")


@pytest.mark.parametrize(
    ("remove", "until", "text"),
    [
        ({}, {"macs": "0.5x"}, "remove names nothing"),
        (TAYLOR, {"heads": "0.5x"}, "until.heads counts heads alone, so remove.ffn would do nothing"),
        ({"ffn": "taylor"}, {"ffn": "1x"}, "until.ffn must be below 1x (got 1x)"),
        ({"head": "taylor"}, {"ffn": "0.5x"}, "remove.head"),
        (TAYLOR, {"macs": "50"}, "until.macs"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(tiny_classifier: Path, rows: DataSets, remove, until, text: str):
    with pytest.raises(InputError) as error:
        Pruner(tiny_classifier, data=rows, remove=remove, until=until)
    assert text in str(error.value)


def test_a_broken_gate_keeps_the_step_before_and_says_what_the_next_would_have_cost(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets
):
    said: list[Decision] = []
    judged: list[Path] = []

    def accept(folder: Path) -> Outcome:
        judged.append(folder)
        load_model(folder)
        return outcome(passed=len(judged) < 3)

    pruner = Pruner(tiny_classifier, data=rows, remove=TAYLOR, until={"macs": "0.3x"}, steps=4, decide=said.append)
    out = pruner.fit(tmp_path / "pruned", accept=accept)
    (back,) = [decision for decision in said if decision.kind == "backtrack"]
    assert len(judged) == 3
    assert back.chosen["step"] == 2
    assert back.candidates["step"] == 3
    assert back.cost == {"accuracy": [0.09, 0.05, 0.13]}
    assert macs(shapes(load_model(out))) == back.chosen["macs"]
    assert back.candidates["macs"] < back.chosen["macs"] < macs(shapes(load_model(tiny_classifier)))


def test_a_gate_that_refuses_the_first_cut_is_an_error(tmp_path: Path, tiny_classifier: Path, rows: DataSets):
    pruner = Pruner(tiny_classifier, data=rows, remove=TAYLOR, until={"macs": "0.5x"})
    with pytest.raises(GateError, match="refuses the first of 1 cuts"):
        pruner.fit(tmp_path / "pruned", accept=lambda _folder: outcome(passed=False))


def count_cuts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets an entry for every cut made from here on."""
    made: list[int] = []
    monkeypatch.setattr(steps_module, "cut", lambda model, kept: made.append(1) or cut(model, kept))
    return made


def stop_at(step: int, said: list[Decision]) -> Callable[[Decision], None]:
    def stop(decision: Decision) -> None:
        if decision.kind == "cut" and decision.chosen["step"] == step:
            raise KeyboardInterrupt
        said.append(decision)

    return stop


def test_an_interrupted_pruning_goes_on_after_the_last_step_and_tells_the_steps_before_it_again(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets, monkeypatch: pytest.MonkeyPatch
):
    recover = {"train": {"steps": 3, "learning_rate": 1e-3}}
    remove = {**TAYLOR, "layers": "taylor"}
    settings = {"data": rows, "remove": remove, "until": {"macs": "0.4x"}, "steps": 3, "recover": recover}
    first, said, again = list[Decision](), list[Decision](), list[Decision]()
    whole = Pruner(tiny_classifier, **settings, decide=first.append).fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        Pruner(tiny_classifier, **settings, decide=stop_at(3, said)).fit(tmp_path / "resumed")
    assert {decision.kind for decision in said} - {"teacher precision"} == {"cut", "layer", "cache", "start"}
    made = count_cuts(monkeypatch)
    out = Pruner(tiny_classifier, **settings, decide=again.append).fit(tmp_path / "resumed")
    assert len(made) == 1
    assert [json.dumps(vars(decision)) for decision in again] == [json.dumps(vars(decision)) for decision in first]
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize("passing", [2, 1])
def test_with_a_work_folder_a_rerun_finds_every_cut_and_recovery_done(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets, passing: int
):
    recover = {"train": {"steps": 6, "learning_rate": 1e-3}}
    settings = {"data": rows, "remove": TAYLOR, "until": {"macs": "0.5x"}, "steps": 2, "recover": recover}
    work, trained, said = tmp_path / "work", list[str](), (list[Decision](), list[Decision]())

    def accept(folder: Path) -> Outcome:
        return outcome(passed=int(folder.parent.name.removeprefix("cut-")) <= passing)

    def progress(what: str, _done: int, _total: int | None) -> None:
        trained.append(what)

    def made(name: str, told: list[Decision]) -> bytes:
        pruner = Pruner(tiny_classifier, **settings, progress=progress, decide=told.append)
        return (pruner.fit(tmp_path / name, work=work, accept=accept) / "model.safetensors").read_bytes()

    first = made("one", said[0])
    steps = (work / "steps.jsonl").read_bytes()
    assert sum(what.startswith("recover") for what in trained) == 6
    trained.clear()
    assert made("two", said[1]) == first
    assert not any(what.startswith("recover") for what in trained)
    assert (work / "steps.jsonl").read_bytes() == steps
    once = [each for each in said[0] if each.kind != "teacher precision"]
    assert [json.dumps(vars(each)) for each in once] == [json.dumps(vars(each)) for each in said[1]]


def another(rows: DataSets, change: str) -> DataSets:
    if change == "select":
        return replace(rows, select=rows.select.head(5))
    return replace(rows, max_tokens=16) if change == "max_tokens" else rows


@pytest.mark.parametrize("change", ["target", "model", "select", "max_tokens"])
def test_leftovers_of_another_pruning_are_not_taken_up(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets, monkeypatch: pytest.MonkeyPatch, change: str
):
    model = shutil.copytree(tiny_classifier, tmp_path / "model")
    settings = {"remove": TAYLOR, "steps": 2, "recover": {"train": {"steps": 4}}}
    work = tmp_path / "pruned.partial"
    with pytest.raises(KeyboardInterrupt):
        Pruner(model, data=rows, until={"macs": "0.3x"}, **settings, decide=stop_at(2, [])).fit(tmp_path / "pruned")
    (work / "cut-1" / "cache").mkdir()
    (work / "cut-2" / "checkpoint").mkdir()
    if change == "model":
        write_tiny_bert(model, labels=("bad", "good"), seed=9)
    until = {"macs": "0.8x" if change == "target" else "0.3x"}
    made, left = count_cuts(monkeypatch), list[Path]()

    def decide(decision: Decision) -> None:
        if decision.kind == "cut":
            left.extend(path for path in work.glob("cut-*/*") if path.name != "cut.json")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pruner(model, data=another(rows, change), until=until, **settings, decide=decide).fit(tmp_path / "pruned")
    assert len(made) == 1
    assert left == []


def test_a_finished_cut_keeps_neither_the_teachers_answers_nor_its_checkpoint(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets
):
    said: list[Decision] = []
    recover = {"train": {"steps": 4}, "cache": "1kB"}
    settings = {"data": rows, "remove": TAYLOR, "until": {"macs": "0.5x"}, "steps": 2, "recover": recover}
    Pruner(tiny_classifier, **settings, decide=said.append).fit(tmp_path / "pruned", work=tmp_path / "work")
    assert [decision.chosen for decision in said if decision.kind == "cache"] == ["logits", "logits"]
    for step in (1, 2):
        left = sorted(path.name for path in (tmp_path / "work" / f"cut-{step}").iterdir())
        assert left == ["cut.json", "model", "steps.jsonl"]


def test_a_teacher_with_another_tokenizer_is_refused(tmp_path: Path, tiny_classifier: Path, rows: DataSets):
    teacher = shutil.copytree(tiny_classifier, tmp_path / "teacher")
    content = json.loads((teacher / "tokenizer.json").read_text())
    renamed = {"story": "sto", "quite": "##ry"}
    words = content["model"]["vocab"]
    content["model"]["vocab"] = {renamed.get(word, word): number for word, number in words.items()}
    (teacher / "tokenizer.json").write_text(json.dumps(content))
    settings = {"data": rows, "remove": TAYLOR, "until": {"macs": "0.5x"}, "recover": {"train": {"steps": 1}}}
    with pytest.raises(InputError, match=r"different tokenizers .*; take a teacher with the model's tokenizer"):
        Pruner(tiny_classifier, teacher=teacher, **settings).fit(tmp_path / "pruned")


def test_a_pruned_model_can_be_pruned_again(tmp_path: Path, tiny_classifier: Path, rows: DataSets):
    once = Pruner(tiny_classifier, data=rows, remove=TAYLOR, until={"macs": "0.6x"}).fit(tmp_path / "once")
    twice = Pruner(once, data=rows, remove=TAYLOR, until={"macs": "0.6x"}).fit(tmp_path / "twice")
    assert macs(shapes(load_model(twice))) <= 0.6 * macs(shapes(load_model(once)))


def test_rows_without_labels_are_scored_against_the_teacher(tmp_path: Path, tiny_classifier: Path, rows: DataSets):
    bare = DataSets(
        task=rows.task,
        labels=rows.labels,
        text_columns=rows.text_columns,
        max_tokens=rows.max_tokens,
        train=Rows((), ()),
        select=rows.select,
        test=None,
        unlabelled=rows.unlabelled,
    )
    other, remove = write_tiny_bert(tmp_path / "other", labels=("bad", "good"), seed=9), Remove(heads="taylor")
    sample = draw_sample(bare, tiny_classifier, teacher=other, remove=remove, seed=1, smoke=True)
    assert "KL to the teacher on 64 unlabelled rows" in sample.source
    model = load_model(tiny_classifier)
    every = tuple(tuple(range(64)) for _ in range(2))
    smaller = cut(model, Kept(((0, 1, 2), (0, 1, 2, 3)), every, (0, 1)))
    scores = score_parts(smaller, remove, sample, seed=1, progress=silent)
    assert float(torch.cat(scores.heads).min()) > 0


def test_the_masked_loss_is_that_of_the_cut_model(tiny_classifier: Path, rows: DataSets):
    sample = draw_sample(rows, tiny_classifier, teacher=None, remove=Remove(heads="taylor"), seed=1, smoke=True)
    model = load_model(tiny_classifier)
    kept = Kept(((0, 2), (1,)), (tuple(range(9)), (3, 4)), (0, 1))
    made = cut(model, kept)
    found = masked_loss(model, kept, sample, progress=silent)
    whole = masked_loss(made, keep_all(shapes(made)), sample, progress=silent)
    assert found == pytest.approx(whole, rel=1e-6)


def test_divergence_from_itself_is_zero_and_cross_entropy_is_torchs():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert float(divergence(logits, logits).abs().max()) < 1e-6
    labels = torch.tensor([0, 1, 2, 1, 0])
    expected = torch.nn.functional.cross_entropy(logits, labels)
    assert float(cross_entropy(logits, labels).mean()) == pytest.approx(float(expected))


def test_renumbering_follows_a_head_through_two_cuts():
    origin = Kept(heads=((0, 2, 3), (), (1, 3)), neurons=((5, 6), (), (7, 9)), layers=(0, 2))
    kept = Kept(heads=((1,), (0, 1)), neurons=((0,), (1,)), layers=(1,))
    assert renumber(origin, kept) == Kept(((), (), (1, 3)), ((), (), (9,)), (2,))


def test_recovery_trains_after_each_cut_and_keeps_the_shape(tmp_path: Path, tiny_classifier: Path, rows: DataSets):
    settings = {"data": rows, "remove": TAYLOR, "until": {"macs": "0.5x"}, "steps": 2}
    recover = {"train": {"steps": 6, "learning_rate": 1e-3}}
    plain = Pruner(tiny_classifier, **settings).fit(tmp_path / "plain")
    work = tmp_path / "work"
    out = Pruner(tiny_classifier, **settings, recover=recover).fit(tmp_path / "recovered", work=work)
    assert macs(shapes(load_model(out))) <= 0.5 * macs(shapes(load_model(tiny_classifier)))
    assert (out / "model.safetensors").read_bytes() != (plain / "model.safetensors").read_bytes()
    lines = [json.loads(line) for line in (work / "steps.jsonl").read_text().splitlines()]
    assert [(line["cut"], line["step"]) for line in lines] == [(cut, step) for cut in (1, 2) for step in (1, 2, 3)]


def test_a_pruning_stopped_while_recovering_ends_as_if_it_had_not_been(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets
):
    recover = {"train": {"steps": 8, "learning_rate": 1e-3, "checkpoint": 1}}
    settings = {"data": rows, "remove": TAYLOR, "until": {"macs": "0.5x"}, "steps": 2, "recover": recover}
    whole = Pruner(tiny_classifier, **settings).fit(tmp_path / "whole")

    def stop(what: str, done: int, _total: int | None) -> None:
        if what.startswith("recover 2") and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pruner(tiny_classifier, **settings, progress=stop).fit(tmp_path / "stopped")
    assert (tmp_path / "stopped.partial" / "cut-2" / "checkpoint").is_dir()
    out = Pruner(tiny_classifier, **settings).fit(tmp_path / "stopped")
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_the_epochs_of_recovery_are_shared_among_the_steps():
    assert share_of_train(Train(epochs=2.0), 4).epochs == 0.5
    assert share_of_train(Train(), 2).epochs == 1.5
    assert share_of_train(Train(steps=10), 4).steps == 2
