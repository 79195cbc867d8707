"""Tiny classifiers with trained tokenizers of every kind whose tokens can be removed, and texts in their language."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

SYLLABLES = ["ba", "ko", "mi", "ter", "ul", "san", "é", "gro", "Pa", "ne", "xi", "zu"]
CHINESE = "电影很好看不错差故事人物无聊喜欢"
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
KINDS = ("wordpiece", "wordpiece-cased", "bpe", "unigram")


def make_texts(count: int, *, seed: int) -> tuple[str, ...]:
    """Distinct sentences of words put together from syllables, with Chinese and punctuation among them."""
    draw = random.Random(seed)
    made: dict[str, None] = {}
    while len(made) < count:
        words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(draw.randint(2, 7))]
        words[draw.randrange(len(words))] = "".join(draw.choices(CHINESE, k=3))
        made[" ".join(words) + draw.choice([".", "!", " 7"])] = None
    return tuple(made)


def _wordpiece(texts: tuple[str, ...], *, lowercase: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
    ends = [("[CLS]", made.token_to_id("[CLS]")), ("[SEP]", made.token_to_id("[SEP]"))]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return made


def _bpe(texts: tuple[str, ...]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=520, special_tokens=special, initial_alphabet=letters)
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return made


def _unigram(texts: tuple[str, ...]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>"))
    made.add_special_tokens(["<mask>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return made


TOKENIZERS: dict[str, Callable[[tuple[str, ...]], Any]] = {
    "wordpiece": lambda texts: _wordpiece(texts, lowercase=True),
    "wordpiece-cased": lambda texts: _wordpiece(texts, lowercase=False),
    "bpe": _bpe,
    "unigram": _unigram,
}


def write_kind(folder: Path, kind: str, *, labels: tuple[str, ...] = ("bad", "good"), seed: int = 0) -> Path:
    """A random classifier whose tokenizer of that kind was trained on 400 texts; BERT, else RoBERTa or XLM-RoBERTa."""
    import torch
    from transformers import AutoModelForSequenceClassification, BertConfig, RobertaConfig, XLMRobertaConfig

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = TOKENIZERS[kind](make_texts(400, seed=1))
    _save_tokenizer(folder, tokenizer, kind)
    count = tokenizer.get_vocab_size() + 3  # a table may be larger than the vocabulary
    sizes: dict[str, Any] = {**SIZES, "vocab_size": count, "max_position_embeddings": 70}
    if kind.startswith("wordpiece"):
        config: Any = BertConfig(**sizes)
    else:
        family = RobertaConfig if kind == "bpe" else XLMRobertaConfig
        config = family(**sizes, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "norm" not in name.casefold():
                weights.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


def _save_tokenizer(folder: Path, tokenizer: Any, kind: str) -> None:
    """As transformers does, with the files of older versions beside tokenizer.json."""
    from transformers import PreTrainedTokenizerFast

    bert = kind.startswith("wordpiece")
    names = {
        "unk_token": "[UNK]" if bert else "<unk>",
        "pad_token": "[PAD]" if bert else "<pad>",
        "cls_token": "[CLS]" if bert else "<s>",
        "sep_token": "[SEP]" if bert else "</s>",
        "mask_token": "[MASK]" if bert else "<mask>",
    }
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names).save_pretrained(folder)
    if kind != "unigram":
        tokenizer.model.save(str(folder))  # vocab.txt, or vocab.json and merges.txt
