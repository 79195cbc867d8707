"""Page, Markdown, JSON and the published schema say the same."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from report_text import NUMBER, check_figures, in_markdown, numbers, on_the_page, wrong
from sample_report import EVIL, LABELS, bare, sample_report

from compressor.report.card import model_card
from compressor.report.model import Report
from compressor.report.outline import sections
from compressor.report.schema import schema_text

SCHEMA = Path(__file__).parents[2] / "docs" / "report.schema.json"


@pytest.fixture(scope="module")
def report() -> Report:
    return sample_report()


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return report.to_html()


def test_page_and_markdown_hold_the_same_tables_with_the_same_numbers(report: Report, page: str):
    shown, written = on_the_page(page), in_markdown(report.to_markdown())
    assert len(written) >= 18
    assert list(shown) == list(written)
    for title, rows in written.items():
        body = rows[1:] if title == "At a glance" else rows
        assert numbers(shown[title]) == numbers(body), title
        assert [row[0].split(" (")[0] for row in body] == [
            re.split(r" \(|\n| (?=TF-IDF|one vector)", row[0])[0].strip() for row in shown[title]
        ], title


def test_markdown_says_the_numbers_of_the_json(report: Report):
    check_figures(json.loads(report.to_json()), in_markdown(report.to_markdown()))


def test_the_speed_up_at_a_glance_is_the_inverse_of_the_ratio(report: Report):
    found = {row[0]: NUMBER.findall(row[1]) for row in in_markdown(report.to_markdown())["At a glance"]}
    ratio = report.subject("ship").versus_teacher.latency_ratio
    shown = [float(one) for one in found["times as fast"][:3]]
    assert shown == pytest.approx([1 / ratio.value, 1 / ratio.high, 1 / ratio.low], abs=0.005)


def test_a_gain_within_the_noise_is_grey(report: Report, page: str):
    (row,) = re.findall(r"<tr>(?:(?!</tr>).)*?>teacher/aa<.*?</tr>", page, re.DOTALL)
    assert re.search(r'data-name="time vs teacher"[^>]*class="dim"', row)
    (row,) = re.findall(
        r'<tr><td data-name="model"><span>int8</span></td><td data-name="prec.".*?</tr>', page, re.DOTALL
    )
    assert not re.search(r'data-name="time vs teacher"[^>]*class="dim"', row)
    unsure = report.subject("int8").versus_teacher.model_copy(update={"speed_verdict": "undecided"})
    subjects = [
        one.model_copy(update={"versus_teacher": unsure}) if one.name == "int8" else one for one in report.subjects
    ]
    models = next(
        one for one in sections(report.model_copy(update={"subjects": tuple(subjects)})) if one.key == "models"
    )
    assert [row[6].tone for row in models.rows if row[0].text == "int8"] == ["dim"]


def test_every_field_of_the_sample_is_filled(report: Report):
    whole = report.to_dict()
    assert [key for key, value in whole.items() if value in (None, [], {}, ())] == []
    deployed = whole["subjects"][3]
    assert [key for key, value in deployed.items() if value in (None, [], {}, ())] == ["same_as"]


def test_an_older_report_still_renders_without_the_later_sections(report: Report):
    old = bare(report)
    keys = {one.key for one in sections(old)}
    assert {"glance", "budget", "models", "ladder", "data", "machine"} <= keys
    assert (
        keys & {"classes", "lengths", "calibration", "baselines", "optimism", "resources", "doubts", "training"}
        == set()
    )
    for shown in (old.to_html(), old.to_markdown(), old.table()):
        assert "82.3" in shown
        assert "Class by class" not in shown


def test_optimism_within_noise_says_so(report: Report):
    def cell(**changes: float | None):
        one = report.optimism[0].model_copy(update=changes)
        changed = report.model_copy(update={"optimism": (one,)})
        return next(found for found in sections(changed) if found.key == "optimism").rows[0][-1]

    assert cell().note == "within noise"
    assert cell().text == "0.5 [-1.9, 3.0]"
    assert cell(low=0.001).note == ""
    assert cell(low=-0.02, high=-0.001).note == ""
    assert (cell(low=None, high=None).text, cell(low=None, high=None).note) == ("0.5", "")


def test_a_section_without_content_is_left_out(report: Report):
    every = [one.key for one in sections(report)]
    parts = {"doubts": "doubts", "baselines": "baselines", "curves": "training", "pruning": "pruned-0 scores-0"}
    for key, name in (parts | {"histogram": "histogram", "optimism": "optimism", "reproduce": "reproduce"}).items():
        without = report.model_copy(update={key: type(getattr(report, key))()})
        assert [one.key for one in sections(without)] == [one for one in every if one not in name.split()]


def test_resources_say_what_is_not_known_and_under_which_conditions_the_rest_holds(report: Report):
    (found,) = (one for one in sections(report) if one.key == "resources")
    assert not any("energy" in head for head in found.heads)
    assert "Energy: this machine has no counters of energy." in found.note
    assert "Cold start: the model's files were in the page cache." in found.note
    assert found.rows[0][1].note == "counted in int8"


def test_the_gain_of_own_lengths_is_said_apart(report: Report):
    (found,) = (one for one in sections(report) if one.key == "times")
    assert "int8 2.20 times (batch 1)" in found.note


def test_labels_in_any_script_stand_in_tables_and_plots(report: Report, page: str):
    for label in LABELS:
        assert label in page
        assert label in report.to_markdown()


def test_which_heads_stayed_is_drawn(page: str):
    squares = re.findall(r'<span class="squares"[^>]*>(.*?)</span>', page)
    assert len(squares) == 3
    on = [[' class="on"' in one for one in re.findall(r"<i[^>]*>", found)] for found in squares]
    assert [place for place, one in enumerate(on[0]) if one] == [0, 1, 2, 4, 7, 9, 11]
    assert not any(on[2])


def test_the_verdict_comes_first_and_says_when_something_simple_would_do(report: Report, page: str):
    body = page[page.index("<body>") :]
    assert body.index("the evidence does not settle") < body.index("<section")
    assert body.index("Something simpler may do") < body.index("Budget</h2>")
    assert "Something simpler may do" in report.table()


def test_the_terminal_names_the_speed_and_the_machine_within_100_columns(report: Report):
    text = report.table()
    assert max(map(len, text.split("\n"))) <= 100
    assert re.search(r"^int8 .* faster$", text, re.MULTILINE)
    assert "machine for timing: fair" in text


# the schema


def test_the_published_schema_is_that_of_the_model():
    again = "write it again: python -c 'from compressor.report.schema import schema_text as s; print(s(), end=\"\")'"
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(), f"{again} > docs/report.schema.json"


def test_reports_keep_the_published_schema(report: Report):
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    for one in (report, bare(report)):
        assert wrong(json.loads(one.to_json()), schema) == []


def test_the_schema_refuses_what_the_model_refuses(report: Report):
    schema, whole = json.loads(schema_text()), report.to_dict()
    for key, value in (("verdict", "maybe"), ("schema", 2), ("subjects", {}), ("doubts", [1])):
        assert wrong({**whole, key: value}, schema), key
        with pytest.raises(ValueError):
            Report.model_validate({**whole, key: value})
    del whole["ladder"]
    assert wrong(whole, schema) == ["report lacks ladder"]


def test_the_schema_explains_its_keys():
    properties = json.loads(schema_text())["$defs"]["LatencyRow"]["properties"]
    assert properties["end_to_end"]["description"] == "Whether tokenizing counts."


# the card


def test_the_hub_reads_the_results_of_the_card(report: Report):
    read = ModelCard(model_card(report, best="ship", base_model="org/teacher", labels=LABELS)).data
    found = {(one.metric_name, one.metric_value) for one in read.eval_results}
    assert found == {(name, round(value, 6)) for name, value in report.subject("ship").metrics.items()}
    assert {one.dataset_name for one in read.eval_results} == {report.name}
    assert {one.dataset_split for one in read.eval_results} == {"test"}
    assert read.pipeline_tag == "text-classification"


def test_the_card_says_classes_limits_and_how_it_was_made(report: Report):
    card = model_card(report, best="ship", labels=LABELS)
    for words in (
        "积极",
        "divided by 1.37",
        "typos: 79.2",
        "compress recipes/reviews.yaml",
        "they suffice",
        "## Doubts",
    ):
        assert words in card
    assert EVIL not in card
