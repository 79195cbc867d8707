"""What pruning does not do is refused, with the reason and what to write instead."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from model_families import write_family
from tiny import write_tiny_bert

from compressor.data.rows import DataSets
from compressor.errors import InputError, RecipeError
from compressor.model.width import HIDDEN_CRITERIA
from compressor.prune.pruner import Pruner
from compressor.prune.settings import UNSTRUCTURED, HiddenCriterion
from compressor.recipe.recipe import Recipe
from compressor.stages.prune import Prune

torch.set_num_threads(1)
HALF = {"macs": "0.5x"}
REASON = "single weights at 0 make a model no faster and its file no smaller on a stock runtime"


@pytest.mark.parametrize("name", UNSTRUCTURED)
def test_unstructured_sparsity_is_refused_as_no_faster_wherever_it_is_asked_for(
    tiny_classifier: Path, rows: DataSets, name: str
):
    for settings in (
        {"remove": {name: "magnitude"}, "until": HALF},
        {"remove": {"heads": "taylor"}, "until": {name: 1}},
    ):
        with pytest.raises(InputError) as error:
            Pruner(tiny_classifier, data=rows, **settings)
        assert f"has {name}, and {REASON}" in str(error.value)
        assert "let whole parts go: remove heads, ffn, layers, halves, hidden" in str(error.value)
    with pytest.raises(ValueError, match=f"has {name}, and {REASON}"):
        Prune.model_validate({"id": "slim", name: 0.5})


def test_a_recipe_that_asks_for_sparsity_is_refused_with_the_reason_when_it_is_read(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    start = "data: {train: train.csv}\nteacher: {model: ./teacher}\nstages: "
    for settings in ("{remove: {weights: magnitude}}", "{until: {sparsity: 0.5x}}", "{sparsity: 0.9}"):
        path.write_text(f"{start}[{{id: slim, prune: {settings}}}]\n")
        with pytest.raises(RecipeError, match="no faster and its file no smaller on a stock runtime"):
            Recipe.load(path)


def test_a_misspelt_kind_is_no_sparsity(tiny_classifier: Path, rows: DataSets):
    with pytest.raises(InputError, match=r"remove.weight: is not a setting"):
        Pruner(tiny_classifier, data=rows, remove={"weight": "taylor"}, until=HALF)


def test_channels_are_not_scored_by_a_criterion_for_heads_and_neurons(tiny_classifier: Path, rows: DataSets):
    with pytest.raises(InputError, match=r"remove.hidden: Input should be 'taylor', .* or 'random' \(got 'surgeon'\)"):
        Pruner(tiny_classifier, data=rows, remove={"hidden": "surgeon"}, until=HALF)
    assert set(HIDDEN_CRITERIA) == set(get_args(HiddenCriterion))


@pytest.mark.parametrize(
    ("remove", "until", "said"),
    [
        ({"heads": "random"}, {"heads": "0.1x"}, "at least 2 of 8, a head in each layer; write 0.25x or more"),
        ({"ffn": "random"}, {"ffn": "0.01x"}, "at least 2 of 128, a neuron in each layer; write 0.016x or more"),
        ({"heads": "random", "ffn": "random"}, {"macs": "0.01x"}, "a head and a neuron in each layer; write"),
        ({"layers": "random"}, {"macs": "0.4x"}, "write 0.5x or more, or let more kinds go in remove"),
        ({"hidden": "random"}, {"macs": "0.1x"}, "or more, or let more kinds go in remove"),
    ],
)
def test_a_target_below_the_floor_is_refused_with_the_floor_and_what_keeps_it(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets, remove: dict, until: dict, said: str
):
    with pytest.raises(InputError) as error:
        Pruner(tiny_classifier, data=rows, remove=remove, until=until).fit(tmp_path / "out")
    assert "is below the floor: removing" in str(error.value)
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_map_to_a_layer_that_went_is_refused_with_the_layers_that_are_left(tmp_path: Path, rows: DataSets):
    model = write_tiny_bert(tmp_path / "model", layers=3, labels=("bad", "good"))
    recover = {"match": [{"of": "hidden", "map": "2:2 3:3"}], "train": {"steps": 2}}
    settings = {"data": rows, "until": HALF, "recover": recover}
    with pytest.raises(InputError) as error:
        Pruner(model, remove={"layers": "magnitude"}, **settings).fit(tmp_path / "out")
    assert "map '2:2 3:3' names student layer 2, but the student has layers 1 to 1" in str(error.value)
    assert "of the input's layers 1 to 3, cut 1 left " in str(error.value)
    assert "pair layers that are left, or take a map by name" in str(error.value)


def test_a_match_of_an_attention_that_went_is_refused(tmp_path: Path, tiny_classifier: Path, rows: DataSets):
    recover = {"match": [{"of": "relations", "map": "1:1 2:2"}], "train": {"steps": 2}}
    settings = {"data": rows, "remove": {"halves": "random"}, "until": {"heads": "0.5x"}, "recover": recover}
    with pytest.raises(
        InputError, match=r"the student's layer \d has no attention left; write pairs without it in map"
    ):
        Pruner(tiny_classifier, **settings).fit(tmp_path / "out")


@pytest.mark.parametrize("remove", [{"heads": "magnitude"}, {"halves": "magnitude"}, {"hidden": "magnitude"}])
def test_an_encoder_whose_parts_are_not_known_is_refused(tmp_path: Path, rows: DataSets, remove: dict):
    model = write_family(tmp_path / "albert", "albert", labels=("bad", "good"))
    with pytest.raises(InputError, match=r"models of type 'albert' cannot be cut or made students of, .* known"):
        Pruner(model, data=rows, remove=remove, until=HALF).fit(tmp_path / "out")


@pytest.mark.parametrize(
    "remove",
    [{"ffn": "taylor", "halves": "taylor"}, {"heads": "taylor", "ffn": "taylor", "halves": "random"}],
)
def test_halves_beside_parts_of_another_score_are_refused_where_latency_is_searched_for(
    tiny_classifier: Path, rows: DataSets, remove: dict
):
    with pytest.raises(InputError, match=r"so that heads, ffn and halves take one score \(got heads: .*or aim at macs"):
        Pruner(tiny_classifier, data=rows, remove=remove, until={"latency": "0.5x"})
    for fitting in ({"halves": "taylor"}, dict.fromkeys(("heads", "ffn", "halves"), "taylor")):
        Pruner(tiny_classifier, data=rows, remove=fitting, until={"latency": "0.5x"})


def test_what_a_loss_compares_with_is_refused_where_latency_is_searched_for_without_one(
    tiny_classifier: Path, rows: DataSets
):
    parts = dict.fromkeys(("heads", "ffn", "halves"), "magnitude")
    with pytest.raises(InputError, match=r"got labels\), and until.latency chooses halves by magnitude without one"):
        Pruner(tiny_classifier, data=rows, remove={**parts, "against": "labels"}, until={"latency": "0.5x"})
    Pruner(tiny_classifier, data=rows, remove={**parts, "against": "labels"}, until={"macs": "0.5x"})
