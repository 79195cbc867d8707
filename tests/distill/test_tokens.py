from pathlib import Path

import numpy as np
import pytest
from tiny import BAD, FILLER, GOOD, make_reviews, write_tiny_bert

from compressor.data.encode import Encoder, open_encoder
from compressor.distill.tokens import Alignment, align, unlike

TEXTS = tuple(text for text, _ in make_reviews(30, seed=4))


def write_tiny_mpnet_tokenizer(folder: Path, words: tuple[str, ...]) -> Encoder:
    """A tokenizer that frames texts as MPNet does: <s> text </s>, pairs with two </s> between."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: place for place, word in enumerate(("<s>", "<pad>", "</s>", "[UNK]", *words, "<mask>"))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="<pad>", cls_token="<s>", sep_token="</s>",
        mask_token="<mask>",
    ).save_pretrained(folder)  # fmt: skip
    return open_encoder(folder, 32)


@pytest.fixture
def bert(tiny_bert: Path) -> Encoder:
    return open_encoder(tiny_bert, 32)


def test_equal_tokenizers_are_the_same(tiny_bert: Path, bert: Encoder) -> None:
    assert align(open_encoder(tiny_bert, 32), bert, TEXTS).kind == "same"


def test_equal_words_under_other_numbers_are_mapped_special_ones_by_their_role(bert: Encoder, tmp_path: Path) -> None:
    mpnet = write_tiny_mpnet_tokenizer(tmp_path, (*FILLER, *BAD, *GOOD, ".", ","))
    found = align(mpnet, bert, TEXTS)
    assert found.kind == "mapped"
    assert found.ids is not None
    for text in TEXTS:
        assert np.array_equal(found.ids[bert.encode([text]).row(0)], mpnet.encode([text]).row(0))
    assert found.ids[bert.pad_id] == mpnet.pad_id
    assert found.ids[bert.mask_id] == mpnet.mask_id
    assert found.ids[bert.unknown_id] == mpnet.unknown_id


def test_a_word_that_no_row_holds_may_be_unknown_to_the_teacher(bert: Encoder, tmp_path: Path) -> None:
    mpnet = write_tiny_mpnet_tokenizer(tmp_path, (*FILLER, *BAD, *GOOD))
    found = align(mpnet, bert, TEXTS)
    assert found.kind == "mapped"
    assert found.ids is not None
    assert found.ids[bert.tokenizer.token_to_id(",")] == mpnet.unknown_id


def test_a_word_that_the_teacher_spells_otherwise_makes_it_read_the_rows_itself(bert: Encoder, tmp_path: Path) -> None:
    words = (*FILLER, *BAD, *[word for word in GOOD if word != "warm"], "wa", "##rm")
    found = align(write_tiny_mpnet_tokenizer(tmp_path, words), bert, ("the film", "a warm film", "a warm plot"))
    assert found.kind == "separate"
    assert found.ids is None
    assert found.reason == (
        "the tokenizers differ: of 'a warm film' the teacher makes <s> a wa ##rm film </s>, the student "
        "[CLS] a warm film [SEP]"
    )


def test_a_word_that_the_teacher_lacks_wholly_is_unknown_to_it_as_in_its_own_reading(
    bert: Encoder, tmp_path: Path
) -> None:
    mpnet = write_tiny_mpnet_tokenizer(tmp_path, (*FILLER, *BAD, *[word for word in GOOD if word != "warm"]))
    found = align(mpnet, bert, ("a warm film",))
    assert found.ids is not None
    assert found.ids[bert.encode(["a warm film"]).row(0)].tolist() == mpnet.encode(["a warm film"]).row(0).tolist()


def test_rows_beyond_the_sample_that_the_teacher_spells_otherwise_are_counted(bert: Encoder, tmp_path: Path) -> None:
    words = (*FILLER, *BAD, *[word for word in GOOD if word != "warm"], "wa", "##rm")
    mpnet, texts = write_tiny_mpnet_tokenizer(tmp_path, words), ("a warm film", "the film", "film , film", "warm")
    mapped = align(mpnet, bert, ("the film",))
    assert mapped.kind == "mapped"
    assert unlike(mpnet, bert, mapped, texts) == 2
    assert unlike(mpnet, bert, mapped, ()) == 0
    assert unlike(mpnet, bert, align(mpnet, bert, texts), texts) == 0  # reads the texts itself
    assert unlike(mpnet, bert, Alignment("same"), texts) == 4
    assert unlike(bert, bert, Alignment("same"), texts) == 0


def test_pairs_that_are_framed_otherwise_do_not_align(bert: Encoder, tmp_path: Path) -> None:
    mpnet = write_tiny_mpnet_tokenizer(tmp_path, (*FILLER, *BAD, *GOOD, ".", ","))
    assert align(mpnet, bert, (("the film", "a plot"),)).kind == "separate"


def test_the_reason_shows_the_first_tokens_alone(bert: Encoder, tmp_path: Path) -> None:
    mpnet = write_tiny_mpnet_tokenizer(tmp_path, ("f", "##ilm"))
    reason = align(mpnet, bert, ("film " * 20,)).reason
    assert reason is not None
    assert reason.endswith("film film film ...")


def test_an_equal_vocabulary_with_a_larger_one_behind_it_is_mapped_not_the_same(tmp_path: Path, bert: Encoder) -> None:
    words = (*FILLER, *BAD, *GOOD)
    one = write_tiny_mpnet_tokenizer(tmp_path / "a", words)
    two = write_tiny_mpnet_tokenizer(tmp_path / "b", (*words, "more"))
    assert align(two, one, TEXTS).kind == "mapped"


@pytest.mark.registry
def test_mpnets_frame_aligns_with_minilms_words(minilm: Path, tmp_path: Path) -> None:
    student = open_encoder(minilm, 32)
    words = tuple(student.tokenizer.id_to_token(number) for number in range(student.tokenizer.get_vocab_size()))
    mpnet = write_tiny_mpnet_tokenizer(tmp_path, tuple(word for word in words if word not in {"[UNK]"}))
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    texts = [line[:200] for line in lines if line.strip() and not set(line) & set("<[")]  # special tokens are others
    assert align(mpnet, student, texts).kind == "mapped"


def test_a_tiny_bert_of_the_same_words_is_the_same_whoever_wrote_it(tmp_path: Path, bert: Encoder) -> None:
    other = open_encoder(write_tiny_bert(tmp_path / "other", seed=5), 32)
    assert align(other, bert, TEXTS).kind == "same"
