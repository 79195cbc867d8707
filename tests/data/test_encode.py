import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from compressor.data.encode import check_script, collate, open_encoder
from compressor.errors import InputError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a", "##s"]


@pytest.fixture
def folder(tmp_path):
    """A WordPiece tokenizer of ten tokens, written by the tokenizers library, padding and truncating on its own."""
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(WORDS[:5])
    tokenizer.enable_padding(length=20)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "max_position_embeddings": 16}))
    return tmp_path


def test_texts_become_ids_without_padding_and_with_their_losses_counted(folder):
    encoded = open_encoder(folder, 6).encode(["Good films", "a b good good film", "", "bad " * 9])
    assert [row.tolist() for row in encoded.ids] == [[2, 5, 7, 9, 3], [2, 8, 1, 5, 5, 3], [2, 3], [2, 6, 6, 6, 6, 3]]
    assert (encoded.truncated, encoded.unknown, encoded.total) == (2, 1, 3 + 4 + 0 + 4)
    assert encoded.lengths.tolist() == [5, 6, 2, 6]
    assert encoded.types is None
    assert all(row.dtype == np.int32 for row in encoded.ids)


def test_a_pair_is_two_segments_and_the_longer_text_is_cut_first(folder):
    encoded = open_encoder(folder, 8).encode([("good", "bad " * 9), ("a", "film")])
    assert encoded.ids[0].tolist() == [2, 5, 3, 6, 6, 6, 6, 3]
    assert encoded.types[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert encoded.truncated == 1


def test_a_pair_given_as_a_list_is_the_same_pair(folder):
    encoder = open_encoder(folder, 8)
    lists, tuples = (encoder.encode([form(("good", "bad film")), form(("a", "film"))]) for form in (list, tuple))
    assert (
        [row.tolist() for row in lists.types]
        == [row.tolist() for row in tuples.types]
        == [[0] * 3 + [1] * 3, [0] * 3 + [1] * 2]
    )
    assert [row.tolist() for row in lists.ids] == [row.tolist() for row in tuples.ids]


def test_rows_do_not_depend_on_their_company(folder, monkeypatch):
    texts = ["good", "a film", "bad films a", ""] * 5
    encoder = open_encoder(folder, 16)
    whole = encoder.encode(texts)
    monkeypatch.setattr("compressor.data.encode.CHUNK_ROWS", 3)
    for row, text in zip(encoder.encode(texts).ids, texts, strict=True):
        assert row.tolist() == encoder.encode([text]).ids[0].tolist()
    assert [r.tolist() for r in whole.ids] == [r.tolist() for r in encoder.encode(texts).ids]


def test_a_batch_is_padded_to_its_longest_row(folder):
    encoder = open_encoder(folder, 16)
    batch = collate(encoder.encode(["good film", "bad", "a a a"]), [1, 0], encoder.pad_id)
    assert batch["input_ids"].tolist() == [[2, 6, 3, 0], [2, 5, 7, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["token_type_ids"].tolist() == [[0] * 4] * 2
    assert {value.dtype for value in batch.values()} == {np.dtype(np.int64)}


def test_special_tokens_are_known_by_name(folder):
    encoder = open_encoder(folder, 16)
    assert (encoder.pad_id, encoder.unknown_id, encoder.mask_id, encoder.special_ids) == (0, 1, 4, (0, 1, 2, 3, 4))
    (folder / "tokenizer_config.json").write_text(json.dumps({"mask_token": {"content": "a"}, "pad_token": "film"}))
    encoder = open_encoder(folder, 16)
    assert (encoder.pad_id, encoder.mask_id) == (7, 8)


@pytest.mark.parametrize("text", ["half \ud800", 7, None, ("good", 7), ["good", None], ["good"], ("good", "bad", "a")])
def test_what_is_no_text_is_named_by_its_row(folder, text):
    with pytest.raises(InputError, match=r"^row 2 \(from 0\) is no text that can be encoded: .*; give a string"):
        open_encoder(folder, 16).encode(["good", "bad", text])


def test_a_script_that_the_vocabulary_lacks_is_refused(folder):
    encoder = open_encoder(folder, 16)
    check_script(encoder.encode(["good", "这"]), "train")
    check_script(encoder.encode([""]), "train")
    with pytest.raises(InputError, match=r"^data/pool\.txt: 67% of the tokens are unknown to the model's vocabulary"):
        check_script(encoder.encode(["good", "这 家", "good", "酒 店"]), "data/pool.txt")


def test_a_folder_without_a_tokenizer_or_with_fewer_positions_is_refused(folder):
    with pytest.raises(InputError, match=r"data\.max_tokens must be at most 16, the positions of .* \(got 17\)"):
        open_encoder(folder, 17)
    (folder / "config.json").write_text(json.dumps({"model_type": "roberta", "max_position_embeddings": 16}))
    with pytest.raises(InputError, match="must be at most 15"):
        open_encoder(folder, 16)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json describes no tokenizer"):
        open_encoder(folder, 8)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer\.json is not JSON"):
        open_encoder(folder, 8)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(
        InputError, match=r"holds no tokenizer\.json; open the model once with transformers' AutoTokenizer"
    ):
        open_encoder(folder, 8)


LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'-éüß这家酒店很好不错电影"
SENTENCES = [
    "The Café isn't OPEN, is it?",
    "unbelievably good [MASK] films!\t\u200b naïve Über-große",
    "这家酒店很好，不错!",
    "电影 film很好 x" * 9,
    "",
    " \ufffd ",
    ("Is it good?", "这电影不错"),
    ("word " * 20, "short"),
]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False, "tokenizer_class": "BertTokenizerFast"},
        {"tokenize_chinese_chars": False, "unk_token": "[UNK]"},
    ],
)
def test_vocab_txt_alone_gives_the_ids_of_transformers(tmp_path, settings):
    from transformers import BertTokenizerFast

    from compressor.model.encoders import copy_tokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "The", "film", "good", "##ly", "cafe", "Café"]
    pieces = [form + letter for letter in LETTERS for form in ("", "##")]
    (tmp_path / "vocab.txt").write_text("\n".join(words + pieces) + "\n", encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "max_position_embeddings": 64}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    stock = BertTokenizerFast.from_pretrained(tmp_path)
    (tmp_path / "made").mkdir()
    copy_tokenizer(tmp_path, tmp_path / "made")
    here, there = open_encoder(tmp_path, 24), open_encoder(tmp_path / "made", 24)
    assert (here.pad_id, here.mask_id, here.unknown_id, here.special_ids) == (0, 4, 1, (0, 1, 2, 3, 4))
    for text in SENTENCES:
        first, second = text if isinstance(text, tuple) else (text, None)
        wanted = stock(first, second, truncation="longest_first", max_length=24)
        encoded = here.encode([text])
        assert encoded.ids[0].tolist() == wanted["input_ids"] == there.encode([text]).ids[0].tolist()
        if second is not None:
            assert encoded.types[0].tolist() == wanted["token_type_ids"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"model_type": "bert", "tokenizer_class": "BertJapaneseTokenizer"}),
        ("tokenizer_config.json", {"tokenizer_class": "MPNetTokenizer"}),
        ("tokenizer_config.json", {"cls_token": "<s>"}),
        ("added_tokens.json", {"<user>": 10}),
    ],
)
def test_a_vocabulary_that_does_not_say_the_whole_tokenizer_is_refused(folder, name, content):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    assert open_encoder(folder, 8).encode(["good films"]).ids[0].tolist() == [2, 5, 7, 9, 3]
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"holds no tokenizer\.json; open the model once"):
        open_encoder(folder, 8)
