import shutil
from pathlib import Path

import pytest
import torch
from families import WHOLE, make
from model_families import write_family
from model_folders import write_classifier
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from compressor.errors import InputError, StageError
from compressor.model import encoders
from compressor.model.encoders import load_model, model_logits, save_model
from compressor.model.manifest import UNEVEN_KEYS, LayerShape, Manifest, Shapes, read_config, read_manifest
from compressor.model.parts import anatomy, shapes
from compressor.model.random import save_random_model
from compressor.model.states import record_hidden
from compressor.model.surgery import Kept, cut, keep_all

torch.set_num_threads(1)
PROBE = {
    "input_ids": torch.tensor([[2, 6, 9, 3], [2, 7, 3, 0]]),
    "attention_mask": torch.tensor([[1] * 4, [1, 1, 1, 0]]),
}
UNEVEN = Kept(heads=((0, 2, 3), ()), neurons=(tuple(range(0, 64, 3)), (1, 5, 63)), layers=(0, 1))


def manifest_of(model: PreTrainedModel, labels: tuple[str, ...] = ("bad", "good")) -> Manifest:
    return Manifest(labels=labels, shapes=shapes(model), max_tokens=64)


def save(model: PreTrainedModel, folder: Path, source: Path) -> Path:
    return save_model(model, folder, tokenizer_from=source, manifest=manifest_of(model), probe=PROBE)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_saved_model_gives_back_its_logits_shapes_and_labels(tmp_path: Path, tiny_classifier: Path, attention: str):
    model = cut(load_model(tiny_classifier, attention=attention), UNEVEN)
    folder = save(model, tmp_path / "model", tiny_classifier)
    again = load_model(folder, attention=attention)
    assert torch.equal(model_logits(again, PROBE), model_logits(model, PROBE))
    assert read_manifest(folder).shapes == shapes(model) == shapes(again)
    assert read_manifest(folder).labels == ("bad", "good")
    assert again.config.id2label == {0: "bad", 1: "good"}
    assert again.config._attn_implementation == attention
    assert not again.training


def test_only_safetensors_tokenizer_config_and_manifest_are_written(tmp_path: Path, tiny_classifier: Path):
    model = load_model(tiny_classifier)
    stock = save(model, tmp_path / "stock", tiny_classifier)
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "compressor.json"}
    assert {path.name for path in stock.iterdir()} == names
    assert read_config(stock)["model_type"] == "bert"
    assert "auto_map" not in read_config(stock)
    pruned = save(cut(model, UNEVEN), tmp_path / "pruned", tiny_classifier)
    assert {path.name for path in pruned.iterdir()} == names | {"pruned_modeling.py"}
    ours = Path(encoders.pruned_modeling.__file__).read_bytes()
    assert (pruned / "pruned_modeling.py").read_bytes() == ours


def test_a_model_cut_back_to_even_shapes_is_saved_as_stock(tmp_path: Path, tiny_classifier: Path):
    pruned = load_model(save(cut(load_model(tiny_classifier), UNEVEN), tmp_path / "pruned", tiny_classifier))
    whole = load_model(tiny_classifier)
    uneven = Kept(keep_all(shapes(whole)).heads, (tuple(range(64)), (1, 5)), (0, 1))
    folder = save(cut(whole, uneven), tmp_path / "uneven", tiny_classifier)
    kept = keep_all(shapes(load_model(folder)))
    even = cut(load_model(folder), Kept(kept.heads, kept.neurons, (0,)))
    assert pruned.config.model_type == "pruned-bert"
    assert "auto_map" not in read_config(save(even, tmp_path / "even", tiny_classifier))


def test_the_reload_check_catches_a_corrupted_save(
    tmp_path: Path, tiny_classifier: Path, monkeypatch: pytest.MonkeyPatch
):
    model = load_model(tiny_classifier)
    honest = BertForSequenceClassification.save_pretrained

    def corrupting(self: PreTrainedModel, folder: Path) -> None:
        honest(self, folder)
        weights = load_file(folder / "model.safetensors")
        weights["classifier.weight"] += 1e-2
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(BertForSequenceClassification, "save_pretrained", corrupting)
    with pytest.raises(StageError, match="does not give back the model that was saved: logits differ by"):
        save(model, tmp_path / "model", tiny_classifier)


def test_a_stale_head_count_in_the_config_is_refused(tmp_path: Path, tiny_classifier: Path):
    folder = save(cut(load_model(tiny_classifier), UNEVEN), tmp_path / "model", tiny_classifier)
    text = (folder / "config.json").read_text()
    assert '"heads": 3' in text
    (folder / "config.json").write_text(text.replace('"heads": 3', '"heads": 2'))
    with pytest.raises(InputError, match=r"weights do not fit config.json.*would be random"):
        load_model(folder)
    with pytest.raises(InputError, match=r"weights do not fit config.json"):
        load_model(folder, labels=["a", "b", "c"])


def test_pickles_are_never_read_or_left_beside_a_saved_model(tmp_path: Path, tiny_classifier: Path):
    model = load_model(tiny_classifier)
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_classifier, folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"only pickled weights \(pytorch_model.bin\), which are never read; convert"):
        load_model(folder)
    with pytest.raises(InputError, match="holds pickles"):
        save(model, folder, tiny_classifier)


def test_a_folder_without_weights_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="holds no weights"):
        load_model(tmp_path)


def test_a_new_head_follows_torchs_seed(tiny_bert: Path):
    def head(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return load_model(tiny_bert, labels=["a", "b", "c"]).classifier.weight

    assert head(1).shape == (3, 32)
    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))


def test_another_number_of_classes_gets_a_new_head_unless_that_is_refused(tiny_classifier: Path):
    assert load_model(tiny_classifier, labels=["a", "b", "c"]).config.num_labels == 3
    with pytest.raises(InputError, match="has a classifier for bad, good, but the rows' classes are a, b, c"):
        load_model(tiny_classifier, labels=["a", "b", "c"], make_head=False)


def test_an_encoder_without_a_head_needs_labels(tiny_bert: Path):
    with pytest.raises(InputError, match="no trained classifier; give labels"):
        load_model(tiny_bert)


def test_classes_in_another_order_keep_their_answers(tiny_classifier: Path):
    given = model_logits(load_model(tiny_classifier, labels=["bad", "good"]), PROBE)
    turned = load_model(tiny_classifier, labels=["Good", "bad"])
    assert torch.equal(model_logits(turned, PROBE), given[:, [1, 0]])
    assert turned.config.id2label == {0: "Good", 1: "bad"}


def test_other_class_names_are_refused(tiny_classifier: Path):
    with pytest.raises(InputError, match="answers bad, good, but the rows' classes are neg, pos"):
        load_model(tiny_classifier, labels=["neg", "pos"])


def test_recorded_layers_are_those_transformers_reports(tiny_classifier: Path):
    model = load_model(tiny_classifier)
    with record_hidden(model, layers=[0, 2]) as states, torch.no_grad():
        model(**PROBE)
    with torch.no_grad():
        expected = model(**PROBE, output_hidden_states=True).hidden_states
    assert sorted(states) == [0, 2]
    for layer, state in states.items():
        assert torch.equal(state, expected[layer])


def test_recording_a_layer_that_is_not_there_is_refused(tiny_classifier: Path):
    with (
        pytest.raises(InputError, match=r"no layer 3: the model has layers 0 .embeddings. to 2"),
        record_hidden(load_model(tiny_classifier), layers=[1, 3]),
    ):
        pass


def test_loading_says_nothing_and_leaves_transformers_as_loud_as_it_was(
    tiny_bert: Path, capfd: pytest.CaptureFixture[str]
):
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    load_model(tiny_bert, labels=["a", "b"])
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before


def test_an_encoder_of_unknown_anatomy_is_refused_by_name():
    config = AlbertConfig(hidden_size=32, num_attention_heads=4, vocab_size=50, embedding_size=8, intermediate_size=64)
    model = AlbertForSequenceClassification(config)
    with pytest.raises(InputError, match=r"type 'albert'.*known are bert, roberta, distilbert, electra, mpnet$"):
        anatomy(model)
    assert shapes(model).layers[0].heads == 4


def test_a_model_of_two_sizes_in_config_and_file_is_refused(tmp_path: Path, tiny_classifier: Path):
    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, vocab_size=50)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    shutil.copyfile(tiny_classifier / "model.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"do not fit config.json"):
        load_model(tmp_path)


def test_a_slow_tokenizer_is_made_fast(tmp_path: Path, tiny_classifier: Path):
    source = tmp_path / "slow"
    source.mkdir()
    (source / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]) + "\n")
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    shutil.copyfile(tiny_classifier / "config.json", source / "config.json")
    encoders.copy_tokenizer(source, tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()


def test_a_source_without_a_tokenizer_is_refused(tmp_path: Path, tiny_classifier: Path):
    (tmp_path / "empty").mkdir()
    shutil.copyfile(tiny_classifier / "config.json", tmp_path / "empty" / "config.json")
    with pytest.raises(InputError, match=r"holds no tokenizer.json"):
        encoders.copy_tokenizer(tmp_path / "empty", tmp_path)


def test_other_class_names_get_a_new_head_where_that_is_asked_for(tiny_classifier: Path):
    def head(labels: list[str], seed: int = 0) -> torch.Tensor:
        torch.manual_seed(seed)
        return load_model(tiny_classifier, labels=labels, other_names="new head").classifier.weight

    trained = load_model(tiny_classifier).classifier.weight
    assert torch.equal(head(["good", "BAD"]), trained[[1, 0]])
    assert not torch.isclose(head(["neg", "pos"]), trained).any()
    assert torch.equal(head(["neg", "pos"], 1), head(["neg", "pos"], 1))
    assert not torch.equal(head(["neg", "pos"], 1), head(["neg", "pos"], 2))
    assert head(["neg", "pos"]).std().item() == pytest.approx(0.02, rel=0.5)


def test_nothing_of_an_earlier_model_is_left_beside_a_saved_one(tmp_path: Path, tiny_classifier: Path):
    model = load_model(tiny_classifier)
    folder = save(cut(model, UNEVEN), tmp_path / "model", tiny_classifier)
    stale = ["model.onnx", "model.onnx.data", "model-00001-of-00002.safetensors", "predict.py", "vocab.txt"]
    for name in [*stale, "steps.jsonl"]:
        (folder / name).write_text("old")
    save(load_model(tiny_classifier), folder, tiny_classifier)
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "compressor.json"}
    assert {path.name for path in folder.iterdir()} == names | {"steps.jsonl"}
    assert torch.equal(model_logits(load_model(folder), PROBE), model_logits(load_model(tiny_classifier), PROBE))


def test_a_model_saved_where_it_lies_keeps_its_tokenizer(tmp_path: Path, tiny_classifier: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_classifier, folder)
    model = load_model(folder)
    (folder / "predict.py").write_text("mine")
    save(model, folder, folder)
    assert (folder / "tokenizer.json").read_bytes() == (tiny_classifier / "tokenizer.json").read_bytes()
    assert (folder / "predict.py").read_text() == "mine"


@pytest.mark.parametrize("family", WHOLE)
def test_a_random_model_of_a_pruned_one_is_a_stock_one_of_its_depth(tmp_path: Path, family: str):
    source = write_family(tmp_path / "source", family, labels=("bad", "good"))
    pruned = save(cut(load_model(source), UNEVEN), tmp_path / "pruned", source)
    folder = save_random_model(pruned, tmp_path / "random", hidden=16, heads=2, labels=("a", "b", "c"), seed=0)
    config = read_config(folder)
    assert config["model_type"] == family
    assert set(UNEVEN_KEYS).isdisjoint(config)
    assert config["vocab_size"] == read_config(source)["vocab_size"]
    model = load_model(folder)
    layer = LayerShape(heads=2, head_size=8, ffn=32)
    assert shapes(model) == Shapes(hidden=16, layers=(layer, layer), vocabulary=config["vocab_size"])
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}


def save_plain(model: PreTrainedModel, folder: Path) -> Path:
    """A folder as other tools write it, with class names."""
    encoders.set_labels(model, ["bad", "good"])
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", WHOLE)
def test_every_family_opens_with_its_own_answers_in_the_asked_order(tmp_path: Path, family: str):
    model = make(family)
    folder = save_plain(model, tmp_path)
    again = load_model(folder)
    assert again.config._attn_implementation == ("eager" if family == "mpnet" else "short_products")
    assert torch.allclose(model_logits(again, PROBE), model_logits(model, PROBE), atol=1e-6)
    turned = load_model(folder, labels=["good", "bad"], make_head=False)
    assert torch.allclose(model_logits(turned, PROBE), model_logits(model, PROBE)[:, [1, 0]], atol=1e-6)


@pytest.mark.parametrize("family", WHOLE)
def test_an_encoder_of_every_family_gets_a_new_head(tmp_path: Path, family: str):
    make(family).base_model.save_pretrained(tmp_path)
    model = load_model(tmp_path, labels=["a", "b", "c"])
    assert model_logits(model, PROBE).shape == (2, 3)


def test_segments_are_kept_from_a_model_that_knows_none(tmp_path: Path):
    model = load_model(save_plain(make("mpnet"), tmp_path))
    segments = {**PROBE, "token_type_ids": torch.ones_like(PROBE["input_ids"])}
    assert torch.equal(model_logits(model, segments), model_logits(model, PROBE))


@pytest.mark.parametrize("kept", [0, 4, 100, -8])
def test_a_truncated_safetensors_file_is_named(tmp_path, tiny_classifier, kept):
    folder = write_classifier(tmp_path / "model", tiny_classifier)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"model.safetensors is truncated or no safetensors file"):
        load_model(folder)
