import json
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from compressor.data.encode import Encoded, check_pool, check_script, collate, open_encoder
from compressor.data.rows import PoolPart
from compressor.errors import InputError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a", "##s"]


def rows_of(encoded):
    return [encoded.row(place).tolist() for place in range(len(encoded))]


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
    assert rows_of(encoded) == [[2, 5, 7, 9, 3], [2, 8, 1, 5, 5, 3], [2, 3], [2, 6, 6, 6, 6, 3]]
    assert (encoded.truncated, encoded.unknown, encoded.total) == (2, 1, 3 + 4 + 0 + 4)
    assert encoded.lengths.tolist() == [5, 6, 2, 6]
    assert encoded.types is None
    assert encoded.ids.dtype == np.int32


def test_a_pair_is_two_segments_and_the_longer_text_is_cut_first(folder):
    encoded = open_encoder(folder, 8).encode([("good", "bad " * 9), ("a", "film")])
    assert encoded.row(0).tolist() == [2, 5, 3, 6, 6, 6, 6, 3]
    assert encoded.row_types(0).tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert encoded.truncated == 1


def test_a_pair_given_as_a_list_is_the_same_pair(folder):
    encoder = open_encoder(folder, 8)
    lists, tuples = (encoder.encode([form(("good", "bad film")), form(("a", "film"))]) for form in (list, tuple))
    assert lists.types.tolist() == tuples.types.tolist() == [0] * 3 + [1] * 3 + [0] * 3 + [1] * 2
    assert rows_of(lists) == rows_of(tuples)


def test_rows_do_not_depend_on_their_company(folder, monkeypatch):
    texts = ["good", "a film", "bad films a", ""] * 5
    encoder = open_encoder(folder, 16)
    whole = encoder.encode(texts)
    monkeypatch.setattr("compressor.data.encode.CHUNK_ROWS", 3)
    for row, text in zip(rows_of(encoder.encode(texts)), texts, strict=True):
        assert row == encoder.encode([text]).row(0).tolist()
    assert rows_of(whole) == rows_of(encoder.encode(texts))
    assert encoder.encode(texts).own.tolist() == whole.own.tolist() == [1, 2, 4, 0] * 5


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
    for kind in ("roberta", "pruned-roberta"):
        (folder / "config.json").write_text(json.dumps({"model_type": kind, "max_position_embeddings": 16}))
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
        assert encoded.row(0).tolist() == wanted["input_ids"] == there.encode([text]).row(0).tolist()
        if second is not None:
            assert encoded.row_types(0).tolist() == wanted["token_type_ids"]


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
    assert open_encoder(folder, 8).encode(["good films"]).row(0).tolist() == [2, 5, 7, 9, 3]
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"holds no tokenizer\.json; open the model once"):
        open_encoder(folder, 8)


def encoded_of(shares, rows=50):
    """Rows of 20 tokens of which a share is unknown, part after part."""
    unknown = [round(share * 20) for share in shares for _row in range(rows)]
    encoded = Encoded.of([[5] * 20] * len(unknown))
    return replace(encoded, unknown_tokens=np.array(unknown, dtype=np.int32))


def test_a_pool_in_another_language_is_named_with_both_shares():
    parts = [PoolPart("data/forum.txt", 50), PoolPart("data/foreign.txt", 50)]
    labelled = encoded_of([0.05])
    check_pool(encoded_of([0.1, 0.25]), parts, labelled)
    check_pool(encoded_of([0.1]), (), encoded_of([0.0]))
    with pytest.raises(
        InputError,
        match=r"^data/foreign\.txt: 30\.0% of the tokens are unknown to the model's vocabulary, in the labelled rows "
        r"5\.0%; these rows are in another language or were read in the wrong encoding, leave them out$",
    ):
        check_pool(encoded_of([0.0, 0.3]), parts, labelled)
    with pytest.raises(InputError, match=r"^data\.unlabelled: 15\.0% of the tokens"):
        check_pool(encoded_of([0.15]), (), encoded_of([0.0]))
    with pytest.raises(
        InputError, match=r"^data/forum\.txt: 55% of the tokens are unknown .* made for another language"
    ):
        check_pool(encoded_of([0.55, 0.0]), parts, encoded_of([0.5]))


def test_rows_taken_and_padded_are_those_of_a_plain_loop():
    random = np.random.default_rng(0)
    rows = [random.integers(5, 99, n).tolist() for n in random.integers(0, 9, 40)]
    types = [(np.arange(len(row)) > 2).astype(int).tolist() for row in rows]
    encoded = Encoded.of(rows, types)
    order = random.permutation(40)[:17].tolist()
    batch = collate(encoded, order, 1)
    longest = max(len(rows[place]) for place in order)
    for name, source, blank in (("input_ids", rows, 1), ("token_type_ids", types, 0)):
        assert batch[name].tolist() == [source[place] + [blank] * (longest - len(rows[place])) for place in order]
    assert batch["attention_mask"].sum(1).tolist() == [len(rows[place]) for place in order]
    assert [encoded.row(place).tolist() for place in range(40)] == rows
    assert [encoded.row_types(place).tolist() for place in range(40)] == types
    assert Encoded.of(rows).row_types(3).tolist() == [0] * len(rows[3])
    assert collate(encoded, [], 1)["input_ids"].shape == (0, 0)
    both = Encoded.of(rows).take([1]).and_then(encoded.take([2]))
    assert both.types.tolist() == [0] * len(rows[1]) + types[2]
    assert Encoded.of(rows).take([1]).and_then(Encoded.of(rows).take([2])).types is None


def test_no_texts_are_no_rows(folder):
    encoded = open_encoder(folder, 6).encode([])
    assert (len(encoded), encoded.total, encoded.unknown_share(), encoded.types) == (0, 0, 0.0, None)
