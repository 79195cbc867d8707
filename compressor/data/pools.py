"""The sources of the unlabelled pool: their rows, what cleaning took, and their shares of what is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from compressor.errors import InputError

SHARE_ERROR = 1e-6
"""How far shares that should sum to 1 may be off, for those written with few decimals such as 0.333333."""


def no_rows() -> dict[str, int]:
    """Counts of removed rows by why they went, all 0."""
    return {"leaked": 0, "duplicate": 0, "empty": 0}


@dataclass(frozen=True)
class PoolPart:
    """One source in the unlabelled pool, whose rows stand together there, in the order of `data.unlabelled`."""

    name: str
    rows: int
    share: float | None = None
    """Share of the unlabelled rows that are drawn from here; None divides what is left by size."""
    removed: dict[str, int] = field(default_factory=no_rows)
    """Rows taken out of it: texts of select or test, repetitions, blank ones."""


def share_problem(shares: Sequence[float | None]) -> str | None:
    """What is wrong with the shares of data.unlabelled, whatever the files hold; None where nothing is.

    >>> share_problem([0.6, 0.6])
    'has shares that sum to 1.2; make them sum to 1 at most'
    """
    total = sum(share for share in shares if share is not None)
    if total > 1 + SHARE_ERROR:
        return f"has shares that sum to {total:g}; make them sum to 1 at most"
    if None in shares and total >= 1 - SHARE_ERROR:
        return "has shares that sum to 1, which leaves nothing for its sources without a share; give each one"
    return None


def share_notes(parts: Sequence[PoolPart]) -> list[str]:
    """A sentence on each source that the others' shares leave nothing for.

    Raises: InputError for shares that the rows left after cleaning cannot give.
    """
    total = sum(part.share or 0.0 for part in parts)
    for part in parts:
        if part.share is not None and not part.rows:
            raise InputError(
                f"data.unlabelled: {part.name} has share {part.share:g}, but none of its rows is left (removed: "
                f"{in_words(part.removed)}); give it rows of its own or leave it out"
            )
    others = [part for part in parts if part.share is None and part.rows]
    if total > 0 and not others and total < 1 - SHARE_ERROR:
        raise InputError(
            f"data.unlabelled has shares that sum to {total:g}, and no other source has rows for the rest; make them "
            "sum to 1"
        )
    if total >= 1 - SHARE_ERROR:
        return [f"{part.name}: {part.rows} rows are never drawn, as the shares sum to 1." for part in others]
    return []


def in_words(removed: Mapping[str, int]) -> str:
    """Counts of removed rows as a list.

    >>> in_words({"leaked": 2, "empty": 0})
    '2 leaked, 0 empty'
    """
    return ", ".join(f"{count} {why}" for why, count in removed.items())
