"""Sentences of our own, for timing and checking a model where no rows are given."""

# ruff: noqa: RUF001 - Chinese has commas of its own

from __future__ import annotations

SENTENCES: tuple[str, ...] = (
    "Dull.",
    "不好看。",
    "Never again, thank you.",
    "A warm, funny and honest film that never overstays its welcome.",
    "电池只用了两个月就坏了，客服一直没有回复。",
    "The parcel arrived a day early and nothing in it was broken.",
    "Could you tell me when my card will be replaced, and whether the old one still works until then?",
    "这家餐厅的菜味道很好，服务也很周到，下次还会带朋友一起来。",
    "It took three phone calls and two weeks before anybody at the company was willing to say what had gone wrong.",
    "Shares of the chip maker rose by four percent on Tuesday after it said that orders for the next quarter had "
    "already passed those of the whole of last year.",
    "导演想说的事情太多，结果哪一件也没有说清楚，好在演员们都很用心，最后二十分钟还是让人感动，只是前面一个小时实在太长了。",
    "I bought this lamp for my desk because the reviews praised its light, and the light is indeed pleasant, but the "
    "switch sits at the back, the cable is a hand too short, and after a week the arm no longer stays where it is put.",
    "Dear team, the export has failed again since last night's update: the first file is written, the second one is "
    "empty, and the log ends in the middle of a line. We have tried it on two machines, with and without the proxy, "
    "and with an older account, always with the same result. Please tell us which logs you need.",
    "Das Frühstück war köstlich, das Zimmer leider laut.",
    "The story is thin and you will guess the end before the first song is over, yet the two leads are so much at ease "
    "with each other, and the city looks so good in the rain, that I left the cinema happier than I had come, which "
    "is more than I can say of most films this year that won prizes for being serious.",
    "ok",
)
"""Sixteen texts of 1 to some 70 words, English and Chinese."""
