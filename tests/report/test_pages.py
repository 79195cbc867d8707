"""The report as page, Markdown, plain text and model card."""

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from test_assemble import BUDGET, SCORED, subjects, timing, told

from compressor.report.assemble import assemble
from compressor.report.card import model_card
from compressor.report.model import Report
from compressor.report.plot import curves_plot, linear_ticks, report_plot

EVIL = "<script>alert('x')</script>|`**\"&"


@pytest.fixture
def report(tmp_path: Path) -> Report:
    evil = told(
        name=EVIL,
        notes=(EVIL,),
        machine={"cpu": EVIL},
        curves={EVIL: [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1}]},
    )
    return assemble(evil, subjects(tmp_path), SCORED, timings={"cpu": timing()}, budget=BUDGET)


@pytest.fixture
def untimed(tmp_path: Path) -> Report:
    folder = tmp_path / "untimed"
    folder.mkdir()
    return assemble(told(), subjects(folder), SCORED, timings="smoke")


class Tags(HTMLParser):
    """Tags, attributes and unclosed tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "path", "circle", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_one_file_without_network_or_script(report: Report):
    page = report.to_html()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    names = {tag for tag, _ in tags.found}
    assert names & {"script", "link", "img", "iframe"} == set()
    assert not any({"src", "href", "onclick", "onload"} & attributes.keys() for _, attributes in tags.found)
    assert "@import" not in page
    assert "url(" not in page
    assert "viewport" in page
    assert "prefers-color-scheme: dark" in page


def test_every_text_on_the_page_is_escaped(report: Report):
    page = report.to_html()
    assert EVIL not in page
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4


def test_the_page_shows_each_figure_of_the_table(report: Report):
    page = report.to_html()
    for row in report.subjects:
        assert row.name in page
        assert f"{row.latency[0].p50_ms:.3g}" in page
    for line in report.budgets:
        assert line.limit.replace("<", "&lt;") in page


def test_the_page_and_markdown_say_what_was_pruned_in_each_layer_and_why(report: Report):
    assert "3 of 4" in report.to_html()
    for shown in (report.to_html(), report.to_markdown()):
        assert "reached 0.5x" in shown
        assert "dear" in shown


def test_the_plot_is_well_formed_and_has_a_mark_for_each_model(report: Report):
    drawn = ElementTree.fromstring(report_plot(report))
    titles = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert [title.split(":")[0] for title in titles] == ["teacher", "student", "int8"]
    xs = [float(element.get("cx")) for element in drawn.iter("{http://www.w3.org/2000/svg}circle")]
    assert xs == sorted(xs, reverse=True)
    assert "milliseconds" in report_plot(report)


def test_without_times_the_plot_is_against_size(untimed: Report):
    drawn = report_plot(untimed)
    ElementTree.fromstring(drawn)
    assert "megabytes" in drawn
    assert "not measured (smoke)" in untimed.to_html()


def test_curves_are_drawn_and_escaped(report: Report):
    ElementTree.fromstring(curves_plot(report.curves))
    assert curves_plot({}) == ""
    flat = [{"step": 1, "loss": 0.0}, {"step": 2, "loss": 0.0}]
    ElementTree.fromstring(curves_plot({"flat": flat}))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (83.2, 86.9), (0.001, 0.0042), (0, 12345)])
def test_ticks_are_few_and_within_the_axis(low: float, high: float):
    ticks = linear_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert low <= ticks[0] < ticks[-1] <= high


def test_the_terminal_table_fits_100_columns(report: Report, untimed: Report):
    for one in (report, untimed):
        lines = one.table().split("\n")
        assert max(map(len, lines)) <= 100
        assert any(line.startswith("student") for line in lines)
    long = report.model_copy(
        update={"subjects": tuple(r.model_copy(update={"name": "x" * 64}) for r in report.subjects)}
    )
    assert max(map(len, long.table().split("\n"))) <= 100


def test_the_table_says_verdict_budget_and_doubts(report: Report):
    text = report.table()
    assert "verdict: pass" in text
    assert "budget size <= 1MB: pass" in text
    assert "doubts:" in text


def test_markdown_holds_its_tables_together(report: Report):
    markdown = report.to_markdown()
    assert "<script" not in markdown
    for block in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in block.strip().split("\n")}
        assert len(columns) == 1, block


def test_the_model_card_has_a_head_that_the_hub_reads(report: Report):
    card = model_card(report, best="int8", base_model="org/teacher", labels=("bad", "good"))
    _, head, body = card.split("---\n", 2)
    found = yaml.safe_load(head)
    assert found["base_model"] == "org/teacher"
    assert found["pipeline_tag"] == "text-classification"
    result = found["model-index"][0]["results"][0]
    assert result["metrics"][0] == {
        "type": "accuracy",
        "name": "accuracy",
        "value": report.subject("int8").metric.value,
    }
    assert "python predict.py" in body
    assert "<script" not in body
    assert "student" not in body
