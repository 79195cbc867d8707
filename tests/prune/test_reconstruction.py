"""Pruning with reconstruction: on which rows, against which model, what is told, and how it goes on."""

import dataclasses
import json
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from compressor.data.rows import DataSets, Rows
from compressor.errors import InputError
from compressor.model.encoders import load_model, model_logits
from compressor.model.parts import shapes
from compressor.prune import reconstruction
from compressor.prune.pruner import Pruner
from compressor.prune.reconstruction import draw_fitting
from compressor.stage import Decision
from compressor.stages.prune import Prune

FISHER = {"heads": "fisher", "ffn": "fisher"}


def prune(model: Path, rows: DataSets, out: Path, **settings) -> tuple[Path, list[Decision]]:
    """A pruning to half of the encoder's work, and what it decided."""
    said: list[Decision] = []
    given = {"data": rows, "remove": FISHER, "until": {"macs": "0.5x"}, "decide": said.append, **settings}
    return Pruner(model, **given).fit(out), said


@pytest.mark.parametrize("steps", [1, 3])
def test_a_reconstructed_model_is_closer_to_its_input_and_each_cut_says_by_how_much(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets, steps: int
):
    plain, _ = prune(tiny_classifier, rows, tmp_path / "plain", steps=steps)
    made, said = prune(tiny_classifier, rows, tmp_path / "made", steps=steps, reconstruct=True)
    fitting = draw_fitting(rows, tiny_classifier, seed=1, smoke=False)
    uncut = load_model(tiny_classifier)
    errors = [
        sum(
            float((model_logits(load_model(each), batch) - model_logits(uncut, batch)).square().sum())
            for batch in fitting.batches
        )
        for each in (plain, made)
    ]
    assert errors[1] < 0.5 * errors[0]
    told = [each for each in said if each.kind == "reconstruct"]
    assert [each.chosen["step"] for each in told] == list(range(1, steps + 1))
    assert all("to the stage's input; most is missing in the" in each.because for each in told)
    assert told[0].chosen["rows"] == "180 train and 120 unlabelled rows"
    assert all(line["error_after"] <= line["error_before"] for each in told for line in each.candidates)
    assert [kind for each in said if (kind := each.kind) != "pruned"] == ["cut", "reconstruct"] * steps
    json.dumps([vars(each) for each in said], allow_nan=False)


def test_rows_need_no_labels_and_their_tokens_are_bounded(
    tiny_classifier: Path, rows: DataSets, monkeypatch: pytest.MonkeyPatch
):
    bare = dataclasses.replace(rows, train=Rows((), ()))
    fitting = draw_fitting(bare, tiny_classifier, seed=1, smoke=False)
    assert fitting.rows == "120 unlabelled rows"
    monkeypatch.setattr(reconstruction, "FIT_TOKENS", 200)
    few = draw_fitting(bare, tiny_classifier, seed=1, smoke=False)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in few.batches)
    assert 180 < tokens <= 200
    assert few.rows.endswith("of 120 unlabelled rows")
    none = dataclasses.replace(bare, unlabelled=Rows((), ()))
    with pytest.raises(InputError, match="on train rows or unlabelled ones; the data has neither"):
        draw_fitting(none, tiny_classifier, seed=1, smoke=False)


def test_after_a_recovery_the_next_cut_is_fitted_to_what_the_recovery_made(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets, monkeypatch: pytest.MonkeyPatch
):
    fitted_to: list[PreTrainedModel] = []
    whole = reconstruction.reconstruct

    def watched(model, uncut, layers, *given, **settings):
        fitted_to.append(uncut)
        return whole(model, uncut, layers, *given, **settings)

    monkeypatch.setattr(reconstruction, "reconstruct", watched)
    recover = {"train": {"steps": 4, "learning_rate": 1e-3}}
    _, said = prune(tiny_classifier, rows, tmp_path / "one", steps=2, reconstruct=True, recover=recover)
    told = [each for each in said if each.kind == "reconstruct"]
    assert ["to the model before this cut" in each.because for each in told] == [True, True]
    assert shapes(fitted_to[0]).layers[0].ffn == 64
    assert shapes(fitted_to[1]) != shapes(fitted_to[0])
    prune(tiny_classifier, rows, tmp_path / "two", steps=2, reconstruct=True)
    assert fitted_to[2] is fitted_to[3]


def test_an_interrupted_pruning_goes_on_to_the_same_model_and_takes_no_cut_of_one_without_reconstruction(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets
):
    settings = {"data": rows, "remove": FISHER, "until": {"macs": "0.4x"}, "steps": 3}

    def stop(decision: Decision) -> None:
        if decision.kind == "cut" and decision.chosen["step"] == 3:
            raise KeyboardInterrupt

    whole = Pruner(tiny_classifier, **settings, reconstruct=True).fit(tmp_path / "whole")
    for reconstruct_first, same in ((True, True), (False, True)):
        out = tmp_path / f"out-{reconstruct_first}"
        with pytest.raises(KeyboardInterrupt):
            Pruner(tiny_classifier, **settings, reconstruct=reconstruct_first, decide=stop).fit(out)
        again: list[Decision] = []
        Pruner(tiny_classifier, **settings, reconstruct=True, decide=again.append).fit(out)
        assert [each.chosen["step"] for each in again if each.kind == "reconstruct"] == [1, 2, 3]
        assert ((out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()) == same


def test_where_tokens_alone_go_there_is_nothing_to_reconstruct(tiny_classifier: Path, rows: DataSets):
    with pytest.raises(InputError, match="has reconstruct, which is for cuts of"):
        Pruner(tiny_classifier, data=rows, remove={"vocabulary": "unseen"}, reconstruct=True)


def test_the_stage_hands_the_setting_on_and_its_key_has_it():
    on, off = (Prune.model_validate({"id": "slim", "reconstruct": value}) for value in (True, False))
    assert on.key_settings()["reconstruct"] is True
    assert on.key_settings() != off.key_settings()
