import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, make
from tokenizer_kinds import CHINESE, KINDS, make_texts, write_kind
from transformers import AutoTokenizer, PreTrainedModel

from compressor.data.encode import Encoder, collate, open_encoder
from compressor.errors import InputError
from compressor.model.encoders import load_model, model_logits
from compressor.model.footprint import parameters
from compressor.model.parts import shapes
from compressor.model.vocabulary import cut_tokenizer, cut_words, staying

COUNTED, OTHERS = make_texts(12, seed=2), make_texts(200, seed=3)


def ids_of(encoder: Encoder, texts: tuple[str, ...]) -> set[int]:
    return set(encoder.encode(texts).ids.tolist())


def spelled(encoder: Encoder, text: str) -> list[str]:
    return [str(encoder.tokenizer.id_to_token(int(number))) for number in encoder.encode([text]).row(0)]


class Cut:
    """A model and what is left of it, with only the tokens of COUNTED and what these need."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.source, self.out = write_kind(folder / "whole", kind), folder / "small"
        self.before = open_encoder(self.source, 64)
        self.kept = staying(self.source, ids_of(self.before, COUNTED))
        cut_tokenizer(self.source, self.out, self.kept)
        self.model = load_model(self.source)
        self.made = cut_words(self.model, self.kept)
        self.made.save_pretrained(self.out)
        self.after = open_encoder(self.out, 64)


@pytest.fixture(scope="module", params=KINDS)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cut:
    return Cut(tmp_path_factory.mktemp("kinds"), request.param)


def logits(model: PreTrainedModel, encoder: Encoder, texts: tuple[str, ...]) -> torch.Tensor:
    encoded = encoder.encode(texts)
    inputs = collate(encoded, range(len(texts)), encoder.pad_id)
    return model_logits(model, {name: torch.from_numpy(values) for name, values in inputs.items()})


def untouched(small: Cut) -> tuple[str, ...]:
    """Texts whose tokens all stay, none of them unknown."""
    stay = {*small.kept.tolist()} - {small.before.unknown_id}
    return tuple(text for text in COUNTED + OTHERS if ids_of(small.before, (text,)) <= stay)


def test_texts_whose_tokens_stay_have_the_same_tokens_and_the_same_answers(small: Cut):
    texts = untouched(small)
    assert len(texts) > len(COUNTED)
    assert [spelled(small.after, text) for text in texts] == [spelled(small.before, text) for text in texts]
    difference = logits(small.made, small.after, texts) - logits(small.model, small.before, texts)
    assert float(difference.abs().max()) < 1e-5


def test_other_texts_are_spelled_with_smaller_pieces_and_answered(small: Cut):
    others = tuple(set(OTHERS) - set(untouched(small)))
    assert len(others) > 20
    old, new = small.before.encode(others), small.after.encode(others)
    assert new.ids.max() < len(small.kept)
    assert new.ids.size > old.ids.size
    assert new.unknown == old.unknown == 0
    plain = [str(encoder.tokenizer.decode(encoder.encode(others[:1]).row(0).tolist()))
             for encoder in (small.before, small.after)]  # fmt: skip
    assert plain[0] == plain[1]
    assert bool(logits(small.made, small.after, others).isfinite().all())


def test_characters_that_no_token_has_are_read_as_before(small: Cut):
    for text in (counted + strange for counted in COUNTED for strange in (" ☃", " ☃☃ ☃")):
        assert spelled(small.after, text) == spelled(small.before, text)
    assert (small.after.unknown_id is None) == (small.before.unknown_id is None)


def test_the_least_likely_piece_of_unigram_stays_as_unknown_characters_cost_a_little_more(small: Cut):
    models = [json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
              for folder in (small.source, small.out)]  # fmt: skip
    if models[0]["type"] == "Unigram":
        before, after = (dict(model["vocab"]) for model in models)
        assert min(before.values()) == min(after.values())
        assert after == {piece: before[piece] for piece in after}


def test_pieces_that_a_kept_one_is_merged_from_stay(small: Cut):
    model = json.loads((small.out / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    if model["type"] == "BPE":
        made = {left + right for left, right in model["merges"]}
        assert made == {token for token in model["vocab"] if len(token) > 1 and not token.startswith("<")}
        assert {part for pair in model["merges"] for part in pair} <= model["vocab"].keys()


def test_ids_are_dense_and_keep_their_order(small: Cut):
    before = small.before.tokenizer.get_vocab(with_added_tokens=True)
    after = small.after.tokenizer.get_vocab(with_added_tokens=True)
    assert sorted(after.values()) == list(range(len(small.kept)))
    assert [before[token] for token in sorted(after, key=lambda token: after[token])] == small.kept.tolist()
    assert len(after) < 0.9 * len(before)


def test_transformers_reads_the_folder_as_our_encoder_does(small: Cut):
    tokenizer = AutoTokenizer.from_pretrained(small.out)
    texts = list(OTHERS[:40])
    rows = small.after.encode(texts)
    assert tokenizer(texts)["input_ids"] == [rows.row(place).tolist() for place in range(len(texts))]
    pairs = small.after.encode([("ba ko", "miter")])
    assert tokenizer("ba ko", "miter")["input_ids"] == pairs.row(0).tolist()
    assert tokenizer.pad_token_id == small.after.pad_id == small.made.config.pad_token_id
    assert tokenizer.mask_token_id == small.after.mask_id


def test_special_tokens_stand_at_their_new_ids_wherever_they_are_numbered(small: Cut):
    content = json.loads((small.out / "tokenizer.json").read_text(encoding="utf-8"))
    for token in content["added_tokens"]:
        assert small.after.tokenizer.token_to_id(token["content"]) == token["id"]
        assert small.before.tokenizer.token_to_id(token["content"]) == small.kept[token["id"]]
    whole, left = small.model.config, small.made.config
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        number = getattr(whole, name)
        assert number is None or small.kept[getattr(left, name)] == number
    assert left.vocab_size == len(small.kept)
    assert small.made.get_input_embeddings().padding_idx == left.pad_token_id
    frame = [small.after.tokenizer.id_to_token(number) for number in small.after.encode([""]).row(0).tolist()]
    assert frame in (["[CLS]", "[SEP]"], ["<s>", "</s>"])


def test_the_rows_removed_are_all_that_the_model_loses(small: Cut):
    width = small.model.get_input_embeddings().embedding_dim
    gone = small.model.config.vocab_size - len(small.kept)
    assert parameters(small.model) - parameters(small.made) == gone * width
    assert shapes(small.made).vocabulary == len(small.kept)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (small.source, small.out)]
    assert abs(sizes[0] - sizes[1] - 4 * gone * width) <= 8  # fewer digits may shorten the file's own table
    whole, left = (model.get_input_embeddings().weight for model in (small.model, small.made))
    assert torch.equal(left, whole[torch.from_numpy(small.kept)])


def test_keeping_every_token_changes_nothing(small: Cut, tmp_path: Path):
    every = np.arange(small.model.config.vocab_size)
    assert np.array_equal(staying(small.source, every.tolist()), every)
    cut_tokenizer(small.source, tmp_path, every)
    texts = list(OTHERS)
    assert np.array_equal(open_encoder(tmp_path, 64).encode(texts).ids, small.before.encode(texts).ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_word_table_can_be_cut(family: str):
    model = make(family)
    kept = np.array([*range(6), *range(7, 60, 3)])
    made = cut_words(model, kept)
    places = torch.randint(5, len(kept), (4, 9), generator=torch.Generator().manual_seed(3))
    inputs = {"attention_mask": torch.ones_like(places)}
    whole = model_logits(model, {"input_ids": torch.from_numpy(kept)[places], **inputs})
    assert torch.equal(model_logits(made, {"input_ids": places, **inputs}), whole)
    assert shapes(made) == replace(shapes(model), vocabulary=len(kept))
    assert shapes(model).vocabulary == 60


def test_a_second_cut_removes_nothing(small: Cut):
    again = staying(small.out, ids_of(small.after, COUNTED))
    assert np.array_equal(again, np.arange(len(small.kept)))


def test_files_of_the_same_cut_are_the_same_bytes(small: Cut, tmp_path: Path):
    cut_tokenizer(small.source, tmp_path, small.kept)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (small.out / path.name).read_bytes()


def rewritten(source: Path, folder: Path, change: Any) -> Path:
    """A copy of a model folder with another tokenizer.json."""
    shutil.copytree(source, folder)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_files_of_old_versions_are_read_too(tmp_path: Path):
    def age(content: dict[str, Any]) -> None:
        content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
        del content["model"]["type"]

    source = write_kind(tmp_path / "new", "bpe")
    old = rewritten(source, tmp_path / "old", age)
    counted = ids_of(open_encoder(source, 64), COUNTED)
    assert np.array_equal(staying(old, counted), staying(source, counted))
    small = cut_tokenizer(old, tmp_path / "small", staying(old, counted))
    merges = (small / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert merges[0] == "#version: 0.2"
    assert 0 < len(merges) - 1 < len((source / "merges.txt").read_text(encoding="utf-8").splitlines()) - 1


def test_a_model_with_vocab_txt_alone_gets_a_smaller_tokenizer_json(tmp_path: Path):
    source = write_kind(tmp_path / "whole", "wordpiece")
    with_json = open_encoder(source, 64)
    kept = staying(source, ids_of(with_json, COUNTED))
    (source / "tokenizer.json").unlink()
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}), encoding="utf-8")
    bare = open_encoder(source, 64)
    again = staying(source, ids_of(bare, COUNTED))
    assert set(kept.tolist()) - set(again.tolist()) <= {1}  # [unused0], which vocab.txt does not mark
    after = open_encoder(cut_tokenizer(source, tmp_path / "small", again), 64)
    assert [spelled(after, text) for text in COUNTED] == [spelled(bare, text) for text in COUNTED]


@pytest.mark.parametrize("mark", ["", "##"])
def test_single_characters_stay_so_that_no_word_of_them_is_unknown(tmp_path: Path, mark: str):
    source = write_kind(tmp_path, "wordpiece")
    encoder = open_encoder(source, 64)
    spellings = {encoder.tokenizer.id_to_token(number) for number in staying(source, ()).tolist()}
    every = {token for token in encoder.tokenizer.get_vocab() if token.startswith(mark)}
    single = {token for token in every if len(token.removeprefix(mark)) == 1}
    assert len(single) > 10
    assert single <= spellings
    assert mark or set(CHINESE) <= spellings


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path):
    source = write_kind(tmp_path / "whole", "wordpiece")

    def change(content: dict[str, Any]) -> None:
        content["model"] = {"type": "WordLevel", "vocab": content["model"]["vocab"], "unk_token": "[UNK]"}

    with pytest.raises(InputError, match="is of type WordLevel, whose tokens cannot be removed; known are WordPiece"):
        staying(rewritten(source, tmp_path / "words", change), ())


def test_more_tokens_than_the_word_table_has_rows_are_refused(tmp_path: Path):
    source = write_kind(tmp_path / "whole", "unigram")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (source / "config.json").write_text(json.dumps({**config, "vocab_size": 20}), encoding="utf-8")
    with pytest.raises(InputError, match=r"numbers its tokens up to \d+, and the model has 20; save the model again"):
        staying(source, ())


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_file_that_names_no_type_loses_the_same_tokens(tmp_path: Path, kind: str):
    named = write_kind(tmp_path / "named", kind)
    unnamed = shutil.copytree(named, tmp_path / "unnamed")
    content = json.loads((unnamed / "tokenizer.json").read_text())
    del content["model"]["type"]
    (unnamed / "tokenizer.json").write_text(json.dumps(content))
    wanted = ids_of(open_encoder(named, 64), COUNTED)
    assert staying(unnamed, wanted).tolist() == staying(named, wanted).tolist()


def test_added_tokens_that_other_files_name_stay_and_those_without_a_row_are_left_out(tmp_path: Path):
    source = write_kind(tmp_path / "whole", "wordpiece")
    rows = json.loads((source / "config.json").read_text())["vocab_size"]
    (source / "added_tokens.json").write_text(json.dumps({"[OLD]": rows + 5}))
    settings = json.loads((source / "tokenizer_config.json").read_text())
    last = rows - 1
    settings["added_tokens_decoder"] = {str(last): {"content": "odd"}, str(rows + 5): {"content": "[OLD]"}}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    kept = staying(source, ())
    assert last in kept
    out = cut_tokenizer(source, tmp_path / "small", kept)
    assert json.loads((out / "added_tokens.json").read_text()) == {}
    decoder = json.loads((out / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert list(decoder) == [str(len(kept) - 1)]


def test_ids_that_a_config_gives_in_a_list_are_kept_and_numbered_anew(tmp_path: Path):
    source = write_kind(tmp_path / "whole", "wordpiece")
    config = json.loads((source / "config.json").read_text())
    last = config["vocab_size"] - 1
    (source / "config.json").write_text(json.dumps({**config, "eos_token_id": [last]}))
    kept = staying(source, ())
    made = cut_words(load_model(source), kept)
    assert made.config.eos_token_id == [len(kept) - 1]
