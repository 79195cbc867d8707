"""Which rows importance is measured on, what its loss compares with, and what of that is refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import write_tiny_bert

from compressor.data.rows import DataSets, Rows
from compressor.errors import InputError
from compressor.model.encoders import load_model, model_logits
from compressor.model.footprint import head_macs, macs, neuron_macs
from compressor.model.importance import Scores
from compressor.model.parts import shapes
from compressor.model.surgery import keep_all, masked
from compressor.prune import scoring
from compressor.prune.pruner import Pruner
from compressor.prune.schedule import choose, prices_for
from compressor.prune.scoring import (
    Sample,
    around,
    distance,
    divergence,
    draw_sample,
    masked_loss,
    score_parts,
    scored_by,
)
from compressor.prune.settings import Remove
from compressor.stage import Decision, settings_of, silent
from compressor.stages.distill import Distill
from compressor.stages.prune import Prune

torch.set_num_threads(1)
BOTH = {"heads": "taylor", "ffn": "taylor"}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that answers otherwise than the tiny classifier."""
    return write_tiny_bert(tmp_path_factory.mktemp("other") / "teacher", labels=("bad", "good"), seed=9)


def without_labels(rows: DataSets) -> DataSets:
    return replace(rows, train=Rows(rows.train.texts, (None,) * len(rows.train)))


def draw(rows: DataSets, folder: Path, teacher: Path | None, **remove: object) -> Sample:
    return draw_sample(rows, folder, teacher=teacher, remove=settings_of(Remove, remove, "remove"), seed=1, smoke=False)


def test_labels_are_compared_with_unless_the_teacher_is_asked_for(rows: DataSets, tiny_classifier: Path, other: Path):
    count = len(rows.train)
    for settings in ({}, {"against": "labels"}):
        sample = draw(rows, tiny_classifier, other, **BOTH, **settings)
        assert sample.source == f"cross-entropy on {count} train rows"
        assert sample.targets.tolist() == list(rows.train.labels)
    sample = draw(rows, tiny_classifier, other, **BOTH, against="teacher")
    assert sample.source == f"KL to the teacher on {count} train and {len(rows.unlabelled)} unlabelled rows"
    assert sample.targets.shape == (count + len(rows.unlabelled), 2)
    assert sample.loss_per_row is divergence


def test_unlabelled_rows_fill_up_what_train_lacks(
    rows: DataSets, tiny_classifier: Path, other: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scoring, "SAMPLE_ROWS", len(rows.train) + 5)
    assert draw(rows, tiny_classifier, other, **BOTH, against="teacher").rows.endswith("train and 5 unlabelled rows")
    monkeypatch.setattr(scoring, "SAMPLE_ROWS", 20)
    assert draw(rows, tiny_classifier, other, **BOTH, against="teacher").rows == "20 train rows"


def test_what_cannot_be_compared_with_is_refused_with_what_to_do(rows: DataSets, tiny_classifier: Path, other: Path):
    bare = without_labels(rows)
    with pytest.raises(InputError, match=r"remove.against: labels needs labelled train rows, .* write teacher"):
        draw(bare, tiny_classifier, other, **BOTH, against="labels")
    empty = replace(bare, train=Rows((), ()), unlabelled=Rows((), ()))
    with pytest.raises(InputError, match="the data has neither"):
        draw(empty, tiny_classifier, other, **BOTH)


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_a_slope_of_the_divergence_from_itself_is_zero_and_refused(
    tmp_path: Path, rows: DataSets, tiny_classifier: Path, criterion: str
):
    copied = shutil.copytree(tiny_classifier, tmp_path / "copied")
    for teacher, said in ((None, "no teacher is given"), (copied, "is the model that is pruned")):
        with pytest.raises(InputError) as error:
            draw(rows, tiny_classifier, teacher, heads=criterion, against="teacher")
        assert f"{criterion} would follow the model's divergence from itself" in str(error.value)
        assert said in str(error.value)
        assert "write remove.against: teacher with another teacher" in str(error.value)
        assert "score by activation or magnitude" in str(error.value)
    # what a recipe with a teacher beside null would be refused for
    stage(remove={"heads": criterion, "against": "teacher"}, teacher="./second")
    itself = draw(without_labels(rows), tiny_classifier, None, heads="activation")
    found = score_parts(load_model(tiny_classifier), Remove(heads=criterion), itself, seed=1, progress=silent)
    assert float(torch.cat([*found.heads, *found.neurons]).max()) < 1e-6


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "surgeon"])
def test_against_itself_parts_are_scored_without_labels_and_without_another_model(
    rows: DataSets, tiny_classifier: Path, criterion: str
):
    remove = {"heads": criterion, "ffn": criterion, "against": "itself"}
    bare = draw(without_labels(rows), tiny_classifier, None, **remove)
    sample = draw(rows, tiny_classifier, None, **remove)
    assert torch.equal(sample.targets, bare.targets)
    assert sample.source == "squared distance from its own logits on 180 train and 120 unlabelled rows"
    found = score_parts(
        load_model(tiny_classifier), settings_of(Remove, remove, "remove"), bare, seed=1, progress=silent
    )
    assert float(torch.cat([*found.heads, *found.neurons]).min()) > 0


def test_the_targets_against_itself_are_its_logits_moved_by_one_between_classes_and_their_slope_is_that_move():
    logits = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = around(logits.detach(), seed=5)
    moves = targets - logits.detach()
    torch.testing.assert_close(moves.norm(dim=1), torch.ones(400))
    torch.testing.assert_close(moves.mean(1), torch.zeros(400), atol=1e-6, rtol=0)
    distance(logits, targets).sum().backward()
    torch.testing.assert_close(logits.grad, -moves)
    shared = moves.T @ moves / 400  # each direction alike, that of all classes together left out
    torch.testing.assert_close(shared, (torch.eye(3) - 1 / 3) / 2, atol=0.05, rtol=0)
    assert not torch.equal(around(logits.detach(), seed=6), targets)
    torch.testing.assert_close(distance(logits.detach() + 7, logits.detach()), torch.zeros(400), atol=1e-6, rtol=0)


def test_a_score_without_a_slope_needs_neither_labels_nor_a_teacher(rows: DataSets, tiny_classifier: Path):
    sample = draw(without_labels(rows), tiny_classifier, None, heads="activation", layers="activation")
    assert sample.loss == "KL to itself"
    remove = Remove(heads="activation")
    assert scored_by(remove, sample) == f"heads by activation; on {sample.rows}"
    scores = score_parts(load_model(tiny_classifier), remove, sample, seed=1, progress=silent)
    assert float(torch.cat(scores.heads).min()) > 0


@pytest.mark.parametrize(
    ("remove", "text"),
    [
        ({"heads": "magnitude", "against": "labels"}, "remove: has against, which says what a loss compares with (got"),
        ({"layers": "activation", "against": "teacher"}, "nothing here reads a loss (activation); leave it out, or"),
        ({"layers": "taylor", "normalise": True}, "has normalise, which is for the heads and neurons of a layer"),
        ({"heads": "hessian"}, "remove.heads"),
        ({"heads": "fisher", "normalise": 1}, "remove.normalise"),
    ],
)
def test_settings_of_scores_that_would_do_nothing_are_refused(remove: dict, text: str):
    with pytest.raises(InputError) as error:
        settings_of(Remove, remove, "remove")
    assert text in str(error.value)


def test_a_layer_beside_heads_is_held_against_them_by_a_loss():
    assert Remove(heads="magnitude", layers="random", against="teacher").needs_loss
    assert not Remove(heads="magnitude", ffn="activation").needs_loss


def test_normalised_kinds_that_go_together_are_put_on_one_scale(rows: DataSets, tiny_classifier: Path):
    model = load_model(tiny_classifier)
    sample = draw(rows, tiny_classifier, None, **BOTH)

    def scored(**remove: object) -> Scores:
        return score_parts(model, settings_of(Remove, remove, "remove"), sample, seed=1, progress=silent)

    alone = scored(heads="fisher", normalise=True)
    assert [float(each.norm()) for each in alone.heads] == pytest.approx([1.0, 1.0])
    both = scored(heads="fisher", ffn="fisher", normalise=True)
    norms = [float(each.norm()) for each in both.heads]
    assert norms[0] == pytest.approx(norms[1])
    assert float(sum(each.sum() for each in both.heads)) == pytest.approx(8 * head_macs(8, 32))
    assert float(sum(each.sum() for each in both.neurons)) == pytest.approx(128 * neuron_macs(32))
    assert "normalised in each layer" in scored_by(Remove(heads="fisher", normalise=True), sample)


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "activation", "magnitude"])
def test_a_dead_head_and_a_dead_neuron_are_the_first_to_go(rows: DataSets, tiny_classifier: Path, criterion: str):
    model = load_model(tiny_classifier)
    with torch.no_grad():
        attention, up = model.bert.encoder.layer[1].attention, model.bert.encoder.layer[0].intermediate.dense
        attention.output.dense.weight[:, 16:24] = 0
        for part in (attention.self.query, attention.self.key, attention.self.value):
            part.weight[16:24] = 0
        up.weight[7] = 0
        model.bert.encoder.layer[0].output.dense.weight[:, 7] = 0
    remove = Remove(heads=criterion, ffn=criterion)
    scores = score_parts(model, remove, draw(rows, tiny_classifier, None, **BOTH), seed=1, progress=silent)
    sizes = shapes(model)
    dead = head_macs(8, 32) + neuron_macs(32)
    choice = choose(
        sizes,
        scores,
        remove=frozenset({"heads", "ffn"}),
        prices=prices_for("macs", sizes, parameters=0),
        budget=macs(sizes) - dead,
        loss_with=lambda _kept: 0.0,
    )
    assert choice.lost == 0
    assert choice.kept.heads == ((0, 1, 2, 3), (0, 1, 3))
    assert choice.kept.neurons == (tuple(index for index in range(64) if index != 7), tuple(range(64)))


@pytest.mark.parametrize(
    ("remove", "said"),
    [
        (
            {"heads": "fisher", "ffn": "fisher", "normalise": True},
            "neurons by fisher, normalised in each layer; cross-",
        ),
        ({"heads": "fisher", "ffn": "taylor", "against": "teacher"}, "neurons by taylor; KL to the teacher on"),
        ({"ffn": "activation"}, "neurons by activation; on "),
        ({"heads": "magnitude", "ffn": "random"}, "heads by magnitude, neurons by random; at most"),
    ],
)
def test_a_pruning_says_what_it_scored_by(
    tmp_path: Path, rows: DataSets, tiny_classifier: Path, other: Path, remove: dict, said: str
):
    told: list[Decision] = []
    pruner = Pruner(
        tiny_classifier, data=rows, remove=remove, until={"macs": "0.7x"}, teacher=other, decide=told.append
    )
    out = pruner.fit(tmp_path / "pruned")
    assert macs(shapes(load_model(out))) <= 0.7 * macs(shapes(load_model(tiny_classifier)))
    assert said in next(decision.because for decision in told if decision.kind == "cut")


def stage(**settings: object) -> Prune:
    return Prune.model_validate({"id": "slim", **settings})


def test_a_stage_that_compares_with_the_teacher_reads_it_without_recovering():
    taught = stage(remove={**BOTH, "against": "teacher"}, teacher="./second")
    assert [source.path for source in taught.sources().values()] == ["./second"]
    upstream = Distill.model_validate({"id": "student", "teacher": "teacher"})
    filled = stage(remove={**BOTH, "against": "teacher"}).filled([upstream])
    assert filled.references()["teacher"] == "teacher"
    assert filled.recover is None
    with pytest.raises(ValueError, match=r"which only recover and remove.against: teacher need"):
        stage(teacher="./second")


def test_a_loss_that_is_measured_against_itself_compares_with_the_logits_as_they_are(
    rows: DataSets, tiny_classifier: Path
):
    sample = draw(rows, tiny_classifier, None, **BOTH, against="itself")
    model = load_model(tiny_classifier)
    whole = keep_all(shapes(model))
    assert masked_loss(model, whole, sample, progress=silent) < 1e-12
    fewer = replace(whole, layers=(1,))
    with masked(model, fewer):
        moved = [model_logits(model, batch.inputs).clone() for batch in sample.batches(silent, what="", measured=True)]
    own = [model_logits(model, batch.inputs) for batch in sample.batches(silent, what="")]
    apart = torch.cat(moved) - torch.cat(own)
    rise = (apart - apart.mean(-1, keepdim=True)).square().sum(-1).mean() / 2
    assert masked_loss(model, fewer, sample, progress=silent) == pytest.approx(float(rise), rel=1e-4)


def test_a_stage_that_would_compare_a_model_with_itself_is_refused():
    with pytest.raises(InputError, match=r"remove.against compares teacher with itself \(got teacher\)"):
        stage(remove={**BOTH, "against": "teacher"}).filled([])
    stage(remove={"heads": "magnitude", "ffn": "activation", "layers": "random", "against": "teacher"}).filled([])
    several = Distill.model_validate({"id": "student", "teacher": ["teacher", "./second"]})
    with pytest.raises(InputError, match=r"remove.against needs one teacher, a stage or a model, and student has 2"):
        stage(remove={**BOTH, "against": "teacher"}).filled([several])
