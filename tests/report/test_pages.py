"""The report as page, Markdown, plain text and model card."""

import base64
import hashlib
import math
import re
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import pytest
import yaml
from matplotlib.backends.backend_svg import RendererSVG
from sample_report import sample_report
from test_assemble import BUDGET, SCORED, subjects, timing, told

from compressor.report.assemble import assemble
from compressor.report.card import model_card
from compressor.report.model import Report
from compressor.report.plot import Point, curves_plot, report_plot, scatter

SVG = "{http://www.w3.org/2000/svg}"
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
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_one_file_without_network(report: Report):
    for page in (report.to_html(), sample_report(EVIL).to_html()):
        assert EVIL not in page
        assert page.count("<script") == 1
        tags = Tags()
        tags.feed(page)
        assert tags.open == []
        names = [tag for tag, _ in tags.found]
        assert set(names) & {"link", "img", "iframe"} == set()
        assert names.count("script") == 1
        assert not any({"src", "onclick", "onload"} & attributes.keys() for _, attributes in tags.found)
        for key in ("href", "xlink:href"):
            assert all(attributes.get(key, "#").startswith("#") for _, attributes in tags.found)


def test_the_pages_policy_lets_its_own_script_run_and_nothing_else(report: Report):
    page = report.to_html()
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "innerHTML" not in script


def test_the_page_fetches_nothing_and_is_made_for_dark_and_print(report: Report):
    page = report.to_html()
    assert "@import" not in page
    assert "url(" not in page
    assert "viewport" in page
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_every_text_on_the_page_is_escaped(report: Report):
    page = report.to_html()
    assert EVIL not in page
    assert page.count("<script") == 1, "the page's own"
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


def elements(drawn: str, tag: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(drawn).iter(f"{SVG}{tag}"))


def texts(drawn: str) -> list[str]:
    return [element.text or "" for element in elements(drawn, "text")]


def group(drawn: str, name: str) -> ElementTree.Element:
    (found,) = [element for element in elements(drawn, "g") if element.get("class") == name]
    return found


def place(drawn: str, number: int) -> tuple[float, float]:
    """Where the mark of a model is, in SVG units."""
    (mark,) = group(drawn, f"mark-{number}").iter(f"{SVG}use")
    return float(mark.attrib["x"]), float(mark.attrib["y"])


def ends(drawn: str, name: str) -> list[tuple[float, float]]:
    """The corners of a line, in SVG units."""
    (path,) = group(drawn, name).iter(f"{SVG}path")
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path.attrib["d"])]


def named(*names: str) -> list[Point]:
    return [Point(name, (4 / 2**n, 3 / 2**n, 5 / 2**n), (80 + n, 79 + n, 83 + n)) for n, name in enumerate(names)]


def test_the_plot_has_a_mark_and_a_name_for_each_model(report: Report):
    drawn = report_plot(report)
    titles = [element.text or "" for element in elements(drawn, "title")]
    assert [title.split(":")[0] for title in titles] == ["teacher", "student", "int8"]
    assert [text for text in texts(drawn) if text in ("teacher", "student", "int8")] == ["teacher", "student", "int8"]
    xs = [place(drawn, number)[0] for number in range(3)]
    assert xs == sorted(xs, reverse=True)
    assert "milliseconds" in drawn


def test_matplotlib_draws_the_plots(monkeypatch: pytest.MonkeyPatch, report: Report):
    written: list[str] = []
    stock = RendererSVG.draw_text

    def draw_text(self, gc, x, y, text, *rest, **named):
        written.append(text)
        return stock(self, gc, x, y, text, *rest, **named)

    monkeypatch.setattr(RendererSVG, "draw_text", draw_text)
    plots = [report_plot(report), curves_plot(report.curves)]
    assert len(written) > 10
    assert texts(plots[0]) + texts(plots[1]) == written


def test_bars_span_the_intervals_on_a_log_axis():
    drawn = scatter(named("a", "b"), x_name="x", y_name="y")
    (x, y), (x_half, y_up) = place(drawn, 0), place(drawn, 1)
    assert x_half < x
    assert y_up < y
    an_octave, a_point = x - x_half, y - y_up
    (left, _), (right, _) = ends(drawn, "bar-x-0")
    assert (left - x) / an_octave == pytest.approx(math.log2(3 / 4), abs=1e-3)
    assert (right - x) / an_octave == pytest.approx(math.log2(5 / 4), abs=1e-3)
    (_, low), (_, high) = ends(drawn, "bar-y-0")
    assert (y - low) / a_point == pytest.approx(-1, abs=1e-3)
    assert (y - high) / a_point == pytest.approx(3, abs=1e-3)


def test_names_stay_text_in_any_script_and_with_any_mark():
    names = ["<script>", "学生模型", "$x^2$", "a$b", "&amp;", "_a", "#1b1f24", '"><b>']
    stages = {name: [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}] for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots = [scatter(named(*names), x_name="<script>", y_name="\"'>"), curves_plot(stages)]
    for drawn in plots:
        assert [text for text in texts(drawn) if text in names and text != "<script>"] == names[1:]
        assert "<script>" in texts(drawn)
        assert "&lt;script&gt;" in drawn
        assert not elements(drawn, "script")
        assert "<script" not in drawn
        assert [element.text.split(":")[0] for element in elements(drawn, "title")] == names


def test_a_long_name_is_cut_beside_its_mark_and_whole_in_its_tooltip():
    drawn = scatter(named("x" * 64), x_name="x", y_name="y")
    assert "x" * 39 + "…" in texts(drawn)
    assert elements(drawn, "title")[0].text.startswith("x" * 64 + ":")


def test_plots_are_one_element_without_prolog_metadata_or_style_sheet(report: Report):
    for drawn in (report_plot(report), curves_plot(report.curves)):
        assert drawn.startswith("<svg ")
        assert not any(elements(drawn, tag) for tag in ("metadata", "style", "script", "image"))
        namespaces = ["http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"]
        assert re.findall(r"https?://[^\"\s]+", drawn) == namespaces
        root = ElementTree.fromstring(drawn)
        assert root.attrib["viewBox"] == "0 0 560 360"
        assert root.attrib["width"] == "100%"
        assert "height" not in root.attrib
        assert root.attrib["aria-label"]


def test_plots_take_every_colour_from_the_page(report: Report):
    page = report.to_html()
    for drawn in (report_plot(report), curves_plot(report.curves)):
        styles = [element.get("style", "") for element in ElementTree.fromstring(drawn).iter()]
        colours = [found for style in styles for found in re.findall(r"(?:fill|stroke): ([^;]+)", style)]
        variables = {match[1] for colour in colours if (match := re.fullmatch(r"var\((--[\w-]+), #\w{6}\)", colour))}
        assert [colour for colour in colours if colour != "none" and not colour.startswith("var(")] == []
        assert {"--dim", "--line", "--text", "--ink-0"} <= variables
        for variable in variables:
            assert page.count(f"{variable}: #") == 2, "one colour for light, one for dark"
        for element in elements(drawn, "text"):
            assert "fill: var(" in element.attrib["style"]
            assert "system-ui" in element.attrib["style"]


def test_the_same_plot_is_the_same_text_whatever_the_reader_has_set(report: Report):
    before = report_plot(report)
    own = {"font.weight": "bold", "font.size": 30, "svg.fonttype": "path", "svg.hashsalt": "other"}
    with matplotlib.rc_context(own):
        assert report_plot(report) == before
        assert matplotlib.rcParams["font.size"] == 30
        assert matplotlib.rcParams["svg.fonttype"] == "path"


def test_ids_are_unique_on_the_page_and_every_reference_is_to_one(report: Report):
    tags = Tags()
    tags.feed(report.to_html())
    ids = [attributes["id"] for _, attributes in tags.found if "id" in attributes]
    references = [attributes["xlink:href"] for _, attributes in tags.found if "xlink:href" in attributes]
    assert len(references) >= 3
    assert {f"#{one}" for one in ids if not one.startswith("at-")} == set(references)
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for _, attributes in tags.found if "href" in attributes]
    assert links
    assert set(links) <= {f"#{one}" for one in ids}
    other = scatter(named("a"), x_name="another", y_name="y")
    again = scatter(named("a"), x_name="x", y_name="y")
    assert elements(other, "use")[0].attrib.items() != elements(again, "use")[0].attrib.items()
    assert {element.get("id") for element in elements(other, "path")} & {
        element.get("id") for element in elements(again, "path")
    } == {None}


def test_matplotlib_loads_with_the_first_plot_and_pyplot_never():
    code = """
import sys
from compressor.report.html import page
from compressor.report.plot import Point, scatter
early = "matplotlib" in sys.modules
scatter([Point("a", (1, 1, 1), (2, 2, 2))], x_name="x", y_name="y")
print(early, "matplotlib" in sys.modules, "matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]


def test_without_times_the_plot_is_against_size(untimed: Report):
    drawn = report_plot(untimed)
    assert "megabytes (log scale)" in texts(drawn)
    assert "not measured (smoke)" in untimed.to_html()


def test_curves_go_through_their_points():
    assert curves_plot({}) == ""
    assert curves_plot({"one": [{"step": 1, "loss": 1.0}]}) == ""
    steps = [{"step": 0, "loss": 2.0}, {"step": 10, "loss": 1.0}, {"step": 30, "loss": 0.0}]
    drawn = curves_plot({"down": steps, "flat": [{"step": 1, "loss": 0.0}, {"step": 2, "loss": 0.0}]})
    (x, y), (x_10, y_10), (x_30, y_30) = ends(drawn, "mark-0")
    assert x_30 - x == pytest.approx(3 * (x_10 - x), abs=1e-3)
    assert y_30 - y == pytest.approx(2 * (y_10 - y), abs=1e-3)
    assert x_30 > x
    assert y_30 > y
    assert {at for _, at in ends(drawn, "mark-1")} == {y_30}
    assert elements(curves_plot({"flat": [{"step": 0, "loss": 0.0}] * 2}), "svg")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (83.2, 86.9), (50, 50), (-1, 100)])
@pytest.mark.parametrize(("fastest", "slowest"), [(1, 1), (0.4, 12), (0.001, 9000)])
def test_numbers_at_the_axes_are_few_and_plain(low: float, high: float, fastest: float, slowest: float):
    points = [Point("a", (fastest,) * 3, (low,) * 3), Point("b", (slowest,) * 3, (high,) * 3)]
    drawn = scatter(points, x_name="x", y_name="y")
    numbers = [text.replace("−", "-") for text in texts(drawn) if text not in "abxy"]
    assert 4 <= len(numbers) <= 18
    assert all(len(f"{float(number):g}") == len(number) <= 5 for number in numbers)


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
    assert {one["name"] for one in result["metrics"]} == set(report.subject("int8").metrics)
    assert result["metrics"][0] == {
        "type": "accuracy",
        "name": "accuracy",
        "value": report.subject("int8").metric.value,
    }
    assert "python predict.py" in body
    assert "<script" not in body
    assert "student" not in body.split("## How it was made")[0]


def test_scores_of_heads_and_layers_are_drawn_as_shares_of_the_greatest(report: Report):
    layers = [
        {"layer": 0, "heads": 1, "heads_before": 2, "kept_heads": [1], "ffn": 3, "ffn_before": 4, "removed": False,
         "because": "kept", "head_scores": [0.1, 0.4], "score": 2.0},
        {"layer": 1, "heads": 2, "heads_before": 2, "kept_heads": [0, 1], "ffn": 4, "ffn_before": 4, "removed": False,
         "because": "kept", "head_scores": [0.2, 0.0], "score": 0.5},
    ]  # fmt: skip
    drawn = report.model_copy(update={"pruning": ({"stage": "slim", "layers": layers, "because": "x"},)})
    page = drawn.to_html()
    shades = re.findall(r'class="on" style="opacity:([\d.]+)"', page)
    assert shades == ["0.31", "1.0", "0.54", "0.08"]
    assert 'style="width:25.0%"' in page
    assert "0.1 to 0.4" in drawn.to_markdown()
