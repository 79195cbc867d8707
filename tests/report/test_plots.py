"""The plots of steps, lengths and tokens, and how names and the dotted line are laid in the first one."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from sample_report import bare, sample_report
from test_pages import elements, ends, group, place, texts

from compressor.report.figures import Figure
from compressor.report.plot import Point, histogram_plot, ladder_plot, lengths_plot, report_plot, scatter


def test_baselines_are_rings_beside_the_models():
    drawn = report_plot(sample_report())
    names = ["teacher", "student", "slim", "int8", "tfidf", "static"]
    assert [text for text in texts(drawn) if text in names] == names
    hollow = [
        "fill-opacity: 0" in ElementTree.tostring(group(drawn, f"mark-{number}"), "unicode") for number in range(6)
    ]
    assert hollow == [False] * 4 + [True] * 2


def test_the_dotted_line_leaves_out_models_that_another_beats_in_both():
    points = [
        Point("slow", (8, 8, 8), (90, 90, 90)),
        Point("beaten", (6, 6, 6), (80, 80, 80)),
        Point("fast", (2, 2, 2), (85, 85, 85)),
        Point("simple", (1, 1, 1), (95, 95, 95), ring=True),
    ]
    drawn = scatter(points, x_name="x", y_name="y")
    places = [place(drawn, number) for number in range(4)]
    corners = [corner for x, y in ends(drawn, "bar-frontier") for corner in [(round(x, 3), round(y, 3))]]
    slow, fast = ((round(x, 3), round(y, 3)) for x, y in (places[0], places[2]))
    assert corners == [fast, (slow[0], fast[1]), slow]


def test_names_that_would_cover_each_other_stand_apart():
    close = [Point("student", (2.0, 2, 2), (83.0, 82, 84)), Point("slim", (2.05, 2, 2.1), (83.1, 82, 84))]
    drawn = scatter(close, x_name="x", y_name="y")
    spots = [
        re.search(r"translate\(([\d.]+) ([\d.]+)\)|x=.([\d.]+). y=.([\d.]+)", ElementTree.tostring(one, "unicode"))
        for one in elements(drawn, "text")
        if one.text in ("student", "slim")
    ]
    assert len({spot.groups() for spot in spots if spot}) == 2
    (x_one, y_one), (x_two, y_two) = ((float(one) for one in spot.groups() if one) for spot in spots if spot)
    assert abs(y_one - y_two) > 14 or abs(x_one - x_two) > 10


def test_the_ladder_shows_each_steps_speed_up_and_drop_with_their_intervals():
    report = sample_report()
    drawn = ladder_plot(report)
    assert [text for text in texts(drawn) if text in ("student", "slim", "int8", "ship")] == [
        step.step for step in report.ladder
    ]
    one, two = report.ladder[:2]
    for what, first, second, scale in (
        ("speed", one.speedup, two.speedup, math.log),
        ("drop", one.drop, two.drop, lambda value: 100 * value),
    ):
        (low, _), (high, _) = ends(drawn, f"bar-{what}-0")
        (low_two, _), _ = ends(drawn, f"bar-{what}-1")
        unit = (high - low) / (scale(first.high) - scale(first.low))
        assert (low_two - low) / unit == pytest.approx(scale(second.low) - scale(first.low), abs=0.01)
    assert group(drawn, "bar-noise") is not None
    assert ladder_plot(report.model_copy(update={"ladder": ()})) == ""
    untimed = tuple(step.model_copy(update={"speedup": None}) for step in report.ladder)
    assert "speed-up (log scale)" not in texts(ladder_plot(report.model_copy(update={"ladder": untimed})))


def test_a_wide_noise_floor_does_not_cover_the_names_of_the_steps():
    for low, high in ((0.996, 1.02), (1.2, 1.6), (0.3, 0.4)):
        noise = Figure(value=(low + high) / 2, low=low, high=high)
        drawn = ladder_plot(sample_report().model_copy(update={"noise": noise}))
        band = [
            float(one)
            for one in re.findall(r"[ML] ([\d.]+)", ElementTree.tostring(group(drawn, "bar-noise"), "unicode"))
        ]
        names = [ElementTree.tostring(one, "unicode") for one in elements(drawn, "text") if one.text == "student"]
        right = max(float(one) for one in re.findall(r"(?:translate\(| x=.)([\d.]+)", names[0]))
        assert right < min(band)
        marks = [x for x, _ in ends(drawn, "bar-speed-nothing")]
        assert (min(band) <= marks[0] <= max(band)) is (low <= 1 <= high)


def test_lengths_and_tokens_are_drawn_by_their_bins():
    report = sample_report()
    drawn = lengths_plot(report)
    assert [text for text in texts(drawn) if "–" in text] == ["3–11", "12–18", "19–27", "28–64"]
    assert {"teacher", "student", "slim", "int8"} <= set(texts(drawn))
    assert "ship" not in texts(drawn)
    outlines = histogram_plot({"edges": [0, 10, 30], "counts": {"train": [1, 3], "test": [0, 0]}})
    assert "train" in texts(outlines)
    assert "test" not in texts(outlines), "a part without rows"
    assert (histogram_plot({}), lengths_plot(bare(report))) == ("", "")
