"""A report read back: the tables of its page and of its Markdown, and what its JSON breaks of the schema."""

import html
import re
from html.parser import HTMLParser
from typing import Any

import pytest

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")


class Tables(HTMLParser):
    """Section title to its table: a list of rows, each a list of texts; the plots left out."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.title, self.place = "", ""

    def handle_starttag(self, tag, attrs):
        if tag == "h2":
            self.title, self.place = "", "h2"
        elif tag in ("tr", "div") and (tag == "tr" or self.title == "At a glance"):
            self.tables.setdefault(self.title, []).append([])
        elif tag in ("td", "th", "dt", "dd") and self.tables.get(self.title):
            self.tables[self.title][-1].append("")
            self.place = "cell"

    def handle_endtag(self, tag):
        if tag in ("h2", "td", "th", "dt", "dd"):
            self.place = ""

    def handle_data(self, data):
        if self.place == "h2":
            self.title += data
        elif self.place == "cell":
            self.tables[self.title][-1][-1] += data


def on_the_page(page: str) -> dict[str, list[list[str]]]:
    parser = Tables()
    parser.feed(page)
    return {title: [row for row in rows if row] for title, rows in parser.tables.items()}


def in_markdown(text: str) -> dict[str, list[list[str]]]:
    found: dict[str, list[list[str]]] = {}
    title = ""
    for line in text.split("\n"):
        if line.startswith("## "):
            title = html.unescape(line[3:])
        elif line.startswith("|") and not line.startswith("| ---"):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            found.setdefault(title, []).append([html.unescape(re.sub(r"\\(.)", r"\1", cell)).strip() for cell in cells])
    return {title.replace("\\", ""): rows for title, rows in found.items()}


def numbers(rows: list[list[str]]) -> list[list[list[str]]]:
    return [[NUMBER.findall(cell) for cell in row] for row in rows]


def wrong(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None, where: str = "report") -> list[str]:
    """What a value breaks of a JSON schema; the keywords that ours uses, from the specification."""
    root = schema if root is None else root
    if "$ref" in schema:
        return wrong(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, where)
    if "anyOf" in schema:
        return min((wrong(value, one, root, where) for one in schema["anyOf"]), key=len)
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    kind = schema.get("type")
    if (kind == "null" and value is not None) or (kind in kinds and not isinstance(value, kinds[kind])):
        return [f"{where}: {value!r} is no {kind}"]
    if isinstance(value, bool) and kind in ("integer", "number"):
        return [f"{where}: {value!r} is no {kind}"]
    found = [f"{where} lacks {key}" for key in schema.get("required", ()) if key not in value]
    if ("enum" in schema and value not in schema["enum"]) or ("const" in schema and value != schema["const"]):
        found.append(f"{where}: {value!r} is none of the values")
    if isinstance(value, dict):
        known, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
        for key, one in value.items():
            below = known.get(key, rest)
            found += wrong(one, below, root, f"{where}.{key}") if isinstance(below, dict) else []
            found += [f"{where} does not know {key}"] if below is False else []
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        found += [
            line for place, one in enumerate(value) for line in wrong(one, schema["items"], root, f"{where}.{place}")
        ]
    return found


def percent(figure: dict[str, float]) -> list[str]:
    return [f"{100 * figure[key]:.1f}".replace("-0.0", "0.0") for key in ("value", "low", "high")]


def check_figures(whole: dict[str, Any], written: dict[str, list[list[str]]]) -> None:
    """Fails where the tables of the Markdown say other numbers than the JSON does."""
    rows = written["Models"][1:]
    assert len(rows) == len(whole["subjects"])
    for row, subject in zip(rows, whole["subjects"], strict=True):
        assert row[0].split(" ")[0] == subject["name"]
        assert NUMBER.findall(row[3]) == percent(subject["metric"])
        assert float(row[2]) == pytest.approx(subject["bytes"] / 1e6, abs=0.05)
        versus = subject["versus_teacher"]
        if versus:
            assert NUMBER.findall(row[4]) == percent(versus["drop"])
            told = versus["latency_ratio"] or {}
            ratio = [float(one) for one in NUMBER.findall(row[6])]
            assert ratio == pytest.approx([told[key] for key in ("value", "low", "high") if told], abs=5e-4)
            assert row[7] == (versus["speed_verdict"] or "-")
    for row, step in zip(written["Step by step"][1:], whole["ladder"], strict=True):
        assert NUMBER.findall(row[2]) == percent(step["drop"])
    classes = [one for subject in whole["subjects"] for one in subject["classes"] if not subject["same_as"]]
    assert sorted(NUMBER.findall(row[3]) for row in written["Class by class"][1:]) == sorted(
        percent(one["precision"]) for one in classes
    )
