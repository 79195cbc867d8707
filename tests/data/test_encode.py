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


@pytest.mark.parametrize("text", ["half \ud800", 7, None, ("good", 7)])
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
