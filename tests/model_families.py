"""Tiny random classifiers of every family of encoders that export knows, each with a tokenizer of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny import BAD, FILLER, GOOD

WORDS = [*GOOD, *BAD, *FILLER, ".", ","]
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
LABELS = ("bad", "good", "odd")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
COUNT = len(WORDS) + 5


def _bert() -> Any:
    from transformers import BertConfig

    return BertConfig(vocab_size=COUNT, max_position_embeddings=128, **SIZES)


def _electra() -> Any:
    from transformers import ElectraConfig

    return ElectraConfig(vocab_size=COUNT, embedding_size=16, max_position_embeddings=128, **SIZES)


def _albert() -> Any:
    from transformers import AlbertConfig

    return AlbertConfig(vocab_size=COUNT, embedding_size=16, max_position_embeddings=128, **SIZES)


def _distilbert() -> Any:
    from transformers import DistilBertConfig

    return DistilBertConfig(vocab_size=COUNT, max_position_embeddings=128, dim=32, n_layers=2, n_heads=4, hidden_dim=64)


def _roberta() -> Any:
    from transformers import RobertaConfig

    ends = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
    return RobertaConfig(vocab_size=COUNT, max_position_embeddings=130, **ends, **SIZES)


def _mpnet() -> Any:
    from transformers import MPNetConfig

    return MPNetConfig(vocab_size=COUNT, max_position_embeddings=130, **SIZES)


CONFIGS: dict[str, Callable[[], Any]] = {
    "bert": _bert,
    "roberta": _roberta,
    "distilbert": _distilbert,
    "electra": _electra,
    "mpnet": _mpnet,
    "albert": _albert,
}


def write_family(
    folder: Path, kind: str, *, labels: tuple[str, ...] = LABELS, seed: int = 0, spread: float = 0.3
) -> Path:
    """A random classifier of the family, 2 layers, hidden 32, as `save_pretrained` leaves it."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(seed)
    config = CONFIGS[kind]()
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "norm" not in name.casefold():
                weights.normal_(std=spread)
    model.save_pretrained(folder)
    _write_tokenizer(folder, roberta=kind in ("roberta", "mpnet"))
    return folder


def _write_tokenizer(folder: Path, *, roberta: bool) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = list(ROBERTA_TOKENS if roberta else BERT_TOKENS)
    vocabulary = {word: place for place, word in enumerate([*tokens, *WORDS])}
    unknown, pad, mask = ("<unk>", "<pad>", "<mask>") if roberta else ("[UNK]", "[PAD]", "[MASK]")
    start, end = ("<s>", "</s>") if roberta else ("[CLS]", "[SEP]")
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pair = f"{start} $A {end} {end} $B {end}" if roberta else f"{start} $A {end} $B:1 {end}:1"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=pair,
        special_tokens=[(start, vocabulary[start]), (end, vocabulary[end])],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=unknown,
        pad_token=pad,
        cls_token=start,
        sep_token=end,
        mask_token=mask,
        model_max_length=128,
    ).save_pretrained(folder)
