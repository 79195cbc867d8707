"""Which rows are test, select and train, decided by hashes of their texts; then empty, leaked and repeated rows go."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compressor.data.pools import no_rows
from compressor.data.settings import Data, SelectShare, Split
from compressor.data.source_rows import Source, Text
from compressor.errors import InputError
from compressor.sources.settings import RowFile


@dataclass(frozen=True)
class Parts:
    """The rows of a task by what they are for; `select` None means a share of train."""

    train: Source
    pool: tuple[Source, ...]
    select: Source | None
    test: Source | None


@dataclass(frozen=True)
class Cleaned:
    """Parts after cleaning: how many rows of train and pool went, and a sentence on whatever else is odd."""

    train: Source
    pool: tuple[Source, ...]
    select: Source
    test: Source | None
    removed: dict[str, int]
    pool_removed: tuple[dict[str, int], ...]
    """The part of `removed` that went from each source of the pool."""
    notes: list[str]


def split_problems(data: Data) -> list[tuple[str, str]]:
    """Keys under `data` that contradict `split`, with what to do."""
    problems: list[tuple[str, str]] = []
    if data.split is not None:
        if data.test is not None:
            problems.append(("test", "cannot stand beside data.split, which makes test of that file; drop one"))
        own = isinstance(data.select, RowFile) or (data.split.select > 0 and data.select != SelectShare())
        if own:
            problems.append(("select", "cannot stand beside data.split, which makes select of that file; drop one"))
    return problems


def text_hash(text: Text) -> str:
    """SHA-256 (hex) of a text as read, in UTF-8; the two texts of a pair are joined by a tab.

    >>> text_hash("abc")[:8]
    'ba7816bf'
    """
    whole = text if isinstance(text, str) else "\t".join(text)
    return hashlib.sha256(whole.encode()).hexdigest()


def by_hash(rows: Source, indices: Sequence[int]) -> list[int]:
    """The positions in ascending order of their texts' hash, equal texts in the file's order."""
    return sorted(indices, key=lambda place: (text_hash(rows.texts[place]), place))


def split_by_hash(
    rows: Source, labelled: Sequence[int], split: Split
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Positions for test, select, train and the unlabelled pool, from one file.

    `labelled` positions in ascending hash of their text: first test, then select, then train; rows left over and rows
    without a label go to the pool.
    Raises: InputError where there are too few labelled rows.
    """
    asked = split.test + split.select + (split.train or 1)
    if asked > len(labelled):
        raise InputError(
            f"data.split takes {split.test} rows for test, {split.select} for select and {split.train or 'at least 1'} "
            f"for train, but {rows.name} has {len(labelled)} labelled rows; take fewer"
        )
    order = by_hash(rows, labelled)
    first, second = split.test, split.test + split.select
    third = len(order) if split.train is None else second + split.train
    known = set(labelled)
    unlabelled = [place for place in range(len(rows)) if place not in known]
    return order[:first], order[first:second], order[second:third], sorted(order[third:] + unlabelled)


def stratified_share(rows: Source, share: float) -> tuple[list[int], list[int]]:
    """Positions of a share of the rows, class by class and by hash, and of the others in their order.

    A class gives round(share * rows) of its rows, at least one where it has two.
    """
    classes: dict[str | None, list[int]] = defaultdict(list)
    for place, label in enumerate(rows.labels):
        classes[label].append(place)
    taken: list[int] = []
    for label in sorted(classes, key=str):
        places = classes[label]
        count = max(round(share * len(places)), 1) if len(places) > 1 else 0
        taken += by_hash(rows, places)[:count]
    chosen = set(taken)
    return by_hash(rows, taken), [place for place in range(len(rows)) if place not in chosen]


def is_empty(text: Text) -> bool:
    """Whether a text, or both of a pair, is nothing but white space."""
    return not (text if isinstance(text, str) else "".join(text)).strip()


def cleaned(parts: Parts, share: float) -> Cleaned:
    """The parts without rows that are empty, leaked or repeated in train or pool; test and select stay as they are.

    Leaked is a text that stands in test or select too; repeated one that stood before in train, or in train or pool
    for a row of the pool. Without a `select`, `share` of what is left of train becomes it.
    """
    removed = no_rows()
    pool_removed = tuple(no_rows() for _source in parts.pool)

    def clean(pool: Sequence[Source], why: str, goes: Callable[[Text], bool]) -> list[Source]:
        return [_without(source, own, why, goes) for source, own in zip(pool, pool_removed, strict=True)]

    train = _without(parts.train, removed, "empty", is_empty)
    pool = clean(parts.pool, "empty", is_empty)
    held = _texts_of(parts.test)
    if parts.select is None:
        train = _without(train, removed, "leaked", held.__contains__)
        chosen, others = stratified_share(train, share)
        if not chosen:
            raise InputError(
                f"{train.name}: too few labelled rows ({len(train)}) to set a share aside for data.select; give it rows"
            )
        select, train = train.take(chosen), train.take(others)
    else:
        select = parts.select
    notes = _odd(select, parts.test, train)
    held |= _texts_of(select)
    train = _without(train, removed, "leaked", held.__contains__)
    pool = clean(pool, "leaked", held.__contains__)
    seen: set[Text] = set()
    train = _without(train, removed, "duplicate", _repeats(seen))
    pool = clean(pool, "duplicate", _repeats(seen))
    total = {why: removed[why] + sum(own[why] for own in pool_removed) for why in removed}
    return Cleaned(train, tuple(pool), select, parts.test, total, pool_removed, notes)


def _without(rows: Source, removed: dict[str, int], why: str, goes: Callable[[Text], bool]) -> Source:
    """The rows whose text does not go; those that go are counted."""
    kept = [place for place, text in enumerate(rows.texts) if not goes(text)]
    if len(kept) == len(rows):
        return rows
    removed[why] += len(rows) - len(kept)
    return rows.take(kept)


def _repeats(seen: set[Text]) -> Callable[[Text], bool]:
    """A test that is true for every text it has met before."""

    def repeated(text: Text) -> bool:
        if text in seen:
            return True
        seen.add(text)
        return False

    return repeated


def _texts_of(rows: Source | None) -> set[Text]:
    return set() if rows is None else set(rows.texts)


def _odd(select: Source, test: Source | None, train: Source) -> list[str]:
    """Sentences on what is left as it is but should be known."""
    notes = []
    for word, rows in (("select", select), ("test", test)):
        blank = 0 if rows is None else sum(map(is_empty, rows.texts))
        if blank:
            notes.append(f"{word} holds {blank} empty rows; they are scored as they are.")
    shared = len(_texts_of(select) & _texts_of(test))
    if shared:
        notes.append(f"{shared} texts stand in both select and test.")
    first: dict[Text, str | None] = {}
    differing = {t for t, label in zip(train.texts, train.labels, strict=True) if first.setdefault(t, label) != label}
    if differing:
        notes.append(f"{len(differing)} texts of train stand with different labels; the first of each was kept.")
    return notes


def joined(pools: Sequence[Source]) -> tuple[Text, ...]:
    """The texts of several pools, one after the other."""
    return tuple(text for pool in pools for text in pool.texts)
