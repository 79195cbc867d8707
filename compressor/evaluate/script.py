"""Whether texts put spaces between words, which says whether words or characters are to be counted."""

from __future__ import annotations

from collections.abc import Sequence

SPACED_SHARE = 0.05
"""Share of white space below which words cannot be told by it: Chinese has none, English about 0.17."""
LOOKED_AT = 1000
"""Texts that are looked at, about, spread evenly."""


def unspaced(texts: Sequence[str]) -> bool:
    """Whether white space does not tell words apart, as in Chinese.

    >>> unspaced(["a plain sentence"]), unspaced(["很好看的电影"])
    (False, True)
    """
    step = max(1, len(texts) // LOOKED_AT) | 1  # odd, so that of pairs in a row both sides are seen
    looked = texts[::step]
    spaces = sum(character.isspace() for text in looked for character in text)
    return spaces < SPACED_SHARE * sum(map(len, looked))
