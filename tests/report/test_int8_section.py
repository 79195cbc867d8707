"""What the report and `why` show of quantization, beside the decisions and the files that it comes from."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from model_folders import TEXTS, data_of, write_classifier
from report_text import in_markdown, on_the_page
from sample_report import sample_report

from compressor.data.rows import DataSets, Rows
from compressor.data.settings import Task
from compressor.device import has_vnni
from compressor.export.exporter import Exporter
from compressor.quantize.quantizer import Quantizer
from compressor.report import saturation as room
from compressor.report.int8 import built, quantization
from compressor.report.int8_sections import candidates, engines, of_stage, price, products
from compressor.report.model import Report, Saturation
from compressor.report.outline import sections
from compressor.report.saturation import asked, doubts, not_measured, with_saturation
from compressor.report.subjects import Subject
from compressor.report.why import why
from compressor.runtime.onnx import OnnxEngine
from compressor.runtime.predictor import load

DATA = data_of(TEXTS)


@pytest.fixture(scope="module")
def fp32(tmp_path_factory, tiny_classifier):
    place = tmp_path_factory.mktemp("fp32")
    return Exporter(write_classifier(place / "model", tiny_classifier), data=DATA).export(place / "final")


@pytest.fixture(scope="module")
def made(fp32, tmp_path_factory):
    """A folder for exact sums, and the lines that its making left in decisions.jsonl."""
    lines = []
    folder = Quantizer(fp32, data=DATA, isa="vnni", decide=lambda one: lines.append(asdict(one))).fit(
        tmp_path_factory.mktemp("int8") / "model"
    )
    return folder, json.loads(json.dumps(lines))


MIXED = {
    "kind": "mixed",
    "chosen": "1 of 3 products in fp32",
    "because": "the fewest that suffice: layer 4 feed-forward out in fp32: +0.4 pp, +2 percent latency (+1 to +3)",
    "candidates": [
        {"product": "layer 4 feed-forward out", "signal_to_noise_db": 12.5, "kl": 0.02},
        {"product": "classifier", "signal_to_noise_db": None, "kl": 0.001},
        {"product": "pooler", "signal_to_noise_db": 31.0, "kl": 0.0},
    ],
    "cost": {"layer 4 feed-forward out": {"gain": 0.004, "latency_ratio": {"value": 1.02, "low": 1.01, "high": 1.03}}},
}
SMOOTH = {"kind": "smooth", "chosen": "2 inputs evened", "because": "few channels", "candidates": None, "cost": None}
TOLD = {"agreement": 0.99, "largest_difference": 0.2, "mean_difference": 0.03, "flips": 10, "drop": 0.004, "rows": 1000}
CHOICE = {
    "kind": "quantize",
    "chosen": "mixed",
    "because": "the only one of 3 that passed",
    "candidates": [
        {"scheme": "dynamic", "bytes": 90, "integer_products": 3, "products": 3, "kept_in_float": [], **TOLD}
        | {"passed": False, "because": "loses 1.40 pp on select, over 1 pp", "drop": 0.014},
        {"scheme": "static", "bytes": 0, "integer_products": 0, "kept_in_float": [], "passed": False}
        | {"because": "no calibration rows"},
        {"scheme": "mixed", "bytes": 95, "integer_products": 2, "products": 3, "p50_ms": 1.25, **TOLD}
        | {"kept_in_float": ["layer 4 feed-forward out"], "passed": True, "because": ""},
    ],
    "cost": None,
}
LINES = [SMOOTH, MIXED, SMOOTH, CHOICE]


def test_candidates_are_told_as_they_were_decided():
    found = quantization("int8", LINES)
    assert [(one.scheme, one.kept, one.refused) for one in found.candidates] == [
        ("dynamic", False, "loses 1.40 pp on select, over 1 pp"),
        ("static", False, "no calibration rows"),
        ("mixed", True, ""),
    ]
    mixed, static = found.candidates[2], found.candidates[1]
    assert {name: getattr(mixed, name) for name in TOLD} == TOLD
    assert (mixed.integer_products, mixed.products, mixed.p50_ms) == (2, 3, 1.25)
    assert (static.bytes, static.integer_products, static.agreement) == (None, None, None)


def test_products_keep_the_order_of_the_search_with_their_prices():
    found = quantization("int8", LINES)
    assert [(one.product, one.precision) for one in found.ranking] == [
        ("layer 4 feed-forward out", "fp32"),
        ("classifier", "int8"),
        ("pooler", "int8"),
    ]
    assert price(found.ranking[0]) == "+0.4 pp, +2 percent latency (+1 to +3)"
    assert price(found.ranking[1]) == ""
    assert found.ranked == "1 of 3 products in fp32: the fewest that suffice"
    rows = products(found).rows
    assert [cell.text for cell in rows[0]] == [
        "layer 4 feed-forward out", "fp32", "0.02", "12.5", "+0.4", "1.020 [1.010, 1.030]",
    ]  # fmt: skip


def test_what_else_was_decided_is_told_once():
    assert [(note["kind"], note["chosen"]) for note in quantization("int8", LINES).notes] == [
        ("smooth", "2 inputs evened")
    ]


def test_a_stage_that_did_not_quantize_has_no_section():
    assert quantization("slim", [SMOOTH]) is None
    assert quantization("slim", []) is None


def test_a_decision_of_an_earlier_version_is_read():
    old = {
        "scheme": "dynamic",
        "agreement": 0.989,
        "largest_difference": 0.2,
        "rows": 1000,
        "bytes": 15,
        "passed": None,
    }
    line = {"kind": "quantize", "chosen": "dynamic", "because": "the only one", "candidates": [old], "cost": None}
    (one,) = quantization("int8", [line]).candidates
    assert (one.kept, one.refused, one.flips, one.products) == (True, "", None, None)
    assert [cell.text for cell in candidates(quantization("int8", [line])).rows[0]][:4] == [
        "dynamic", "kept", "-", "98.9",
    ]  # fmt: skip


def test_a_real_stage_is_told_with_its_file(made):
    folder, lines = made
    found = quantization("int8", lines, folder)
    (one,) = found.candidates
    assert (found.chosen, found.precision, found.isa) == ("dynamic", "int8", "vnni")
    assert one.integer_products == one.products == found.built.products == sum(found.built.integer.values())
    assert one.bytes == (folder / "model.onnx").stat().st_size
    assert found.built.in_float == ()
    assert found.built.int8_embeddings
    assert found.built.fused == found.built.expected
    assert found.built.not_fused == ()
    assert all(not part.empty for part in of_stage(found))


def test_a_model_left_in_fp32_is_told_as_such(fp32):
    line = {**CHOICE, "chosen": "fp32", "because": "no scheme passed the gate"}
    found = quantization("int8", [line], fp32)
    assert found.precision == "fp32"
    assert not any(one.kept for one in found.candidates)
    assert found.built.integer == {}
    assert len(found.built.in_float) == found.built.products > 0
    assert built(fp32.parent) is None


def test_page_and_markdown_show_the_sections_in_order():
    report = sample_report()
    titles = ["INT8: int8", "INT8: int8, product by product", "INT8: int8, what was made", "INT8: sums", "Engine"]
    shown = [section.title for section in sections(report)]
    assert [title for title in shown if title in titles] == titles
    page, text = report.to_html(), report.to_markdown()
    assert [title for title in on_the_page(page) if title in titles] == titles
    rows = in_markdown(text)["INT8: int8"]
    assert rows[3][:5] == ["mixed", "kept", "-0.20", "99.1", "9 (of 1,000)"]
    assert rows[1][1] == "refused (loses 1.40 pp on select, over 1 pp)"
    assert "attention of layer 1" in text
    assert "+1.1 pp, +3 percent latency (+2 to +4)" in text
    for words in (
        "Kept: mixed",
        "Its weights are for avx2.",
        "left in pieces (slower, not wrong): attention of layer 1",
    ):
        assert words in page
        assert words in text


def test_two_quantize_stages_have_sections_of_their_own():
    report = sample_report()
    (one,) = report.quantization
    twice = report.model_copy(update={"quantization": (one, one.model_copy(update={"stage": "other"}))})
    keys = [section.key for section in sections(twice)]
    assert len(keys) == len(set(keys))


def test_the_report_reads_back_what_it_wrote(tmp_path: Path):
    report = sample_report()
    (tmp_path / "report.json").write_text(report.to_json())
    again = Report.read(tmp_path / "report.json")
    assert (again.quantization, again.saturation) == (report.quantization, report.saturation)


def test_the_engine_section_names_times_and_refusals():
    section = engines(sample_report())
    assert [[cell.text for cell in row] for row in section.rows] == [
        ["cpu", "onnxruntime", "chosen", "1.33"],
        ["cpu", "openvino", "refused", "-"],
    ]
    assert section.rows[1][2].note == "those operators are onnxruntime's alone"
    assert "Engine" not in [one.title for one in sections(sample_report().model_copy(update={"decisions": ()}))]


def test_why_prints_candidates_and_prices_as_tables():
    text = why("int8", LINES)
    lines = text.splitlines()
    assert "smooth: 2 inputs evened because few channels" in lines
    assert "mixed: 1 of 3 products in fp32: the fewest that suffice" in lines
    assert "    layer 4 feed-forward out in fp32: +0.4 pp, +2 percent latency (+1 to +3)" in lines
    assert "quantize: mixed because the only one of 3 that passed" in lines
    heads = next(line for line in lines if line.strip().startswith("scheme"))
    assert heads.split()[:4] == ["scheme", "is", "drop", "(pp)"]
    row = next(line for line in lines if line.strip().startswith("mixed "))
    assert row.split() == ["mixed", "kept", "0.40", "99.0", "10", "0.2", "0.03", "0.000", "1.25", "2", "of", "3"]
    assert "    dynamic: loses 1.40 pp on select, over 1 pp" in lines
    assert "    mixed: in float: layer 4 feed-forward out" in lines
    assert max(len(line) for line in lines if "because" not in line) <= 100


def test_why_prints_other_candidates_of_like_keys_as_a_table():
    fusion = {"kind": "fusion", "chosen": "Attention 2 of 2", "because": "alike", "cost": None}
    fusion["candidates"] = [{"form": "traced", "largest": 1e-6}, {"form": "fused", "largest": 2e-6}]
    engine = {"kind": "engine", "chosen": "torch", "because": "faster", "cost": None}
    engine["candidates"] = {"torch": {"p50_ms": 1.5}, "openvino": {"refused": "not installed"}}
    told = [line.split() for line in why("ship", [fusion, engine]).splitlines()]
    assert ["form", "largest"] in told
    assert ["fused", "2e-06"] in told
    smooth = {**SMOOTH, "candidates": [{"product": "/model/bert/encoder/layer.3/output/dense/MatMul", "alpha": 0.7}]}
    assert "    layer 3 feed-forward out  0.7" in why("int8", [smooth]).splitlines()
    assert ["p50_ms", "refused"] in told
    assert ["torch", "1.5", "-"] in told
    assert why("ship", []) == "ship decided nothing: it did as the recipe says\n"


def rows_of(count: int) -> DataSets:
    texts = [f"{TEXTS[place % len(TEXTS)]} {place}" for place in range(count)]
    test = Rows(tuple(texts), tuple(place % 2 for place in range(count)))
    few = test.head(4)
    return DataSets(Task(), ("bad", "good"), ("text",), 64, few, few, test, Rows((), ()))


def scored(folder: Path, data: DataSets) -> tuple[Report, Subject]:
    logits = load(folder, engine="onnxruntime", spinning=False).logits(list(data.test.texts))
    base = sample_report()
    row = base.subject("int8").model_copy(update={"name": "int8"})
    report = base.model_copy(update={"subjects": (row,), "best": "int8", "saturation": None, "doubts": ()})
    return report, Subject("int8", folder, precision="int8", logits=logits)


@pytest.mark.skipif(has_vnni(), reason="saturating sums cannot be had here")
def test_both_sums_are_those_of_the_engine(made, monkeypatch):
    folder, _ = made
    data = rows_of(30)
    monkeypatch.setattr(room, "MOST_ROWS", 20)
    report, subject = scored(folder, data)
    found = with_saturation(report, [subject], data).saturation
    assert (found.status, found.isa, found.rows, found.exact.rows) == ("measured", "vnni", 20, 20)
    places = np.linspace(0, 29, 20).round().astype(int)
    texts = [data.test.texts[place] for place in places]
    exact, saturating = (asked(folder, texts, precise=precise, threads=None) for precise in (True, False))
    assert np.abs(exact - subject.logits[places]).max() == 0.0
    assert found.largest_difference == pytest.approx(float(np.abs(exact - saturating).max()))
    wanted = np.array([data.test.labels[place] for place in places])
    assert found.saturating.value == pytest.approx(np.mean(saturating.argmax(-1) == wanted))
    assert found.exact.value == pytest.approx(np.mean(exact.argmax(-1) == wanted))
    assert found.agreement == pytest.approx(np.mean(exact.argmax(-1) == saturating.argmax(-1)))


@pytest.mark.skipif(has_vnni(), reason="saturating sums cannot be had here")
def test_weights_of_seven_bits_answer_alike_with_both_sums(fp32, tmp_path):
    data = rows_of(12)
    folder = Quantizer(fp32, data=DATA, isa="avx2").fit(tmp_path / "model")
    report, subject = scored(folder, data)
    found = with_saturation(report, [subject], data)
    assert found.saturation.agreement == 1.0
    assert found.saturation.largest_difference < 1e-4
    assert found.saturation.drop.value == 0.0
    assert found.doubts == ()


def test_fp32_has_no_sums(fp32):
    data = rows_of(4)
    report, subject = scored(fp32, data)
    assert with_saturation(report, [subject], data) is report


def test_a_processor_that_sums_exactly_says_not_measured(made, monkeypatch):
    monkeypatch.setattr(room, "has_vnni", lambda: True)
    monkeypatch.setattr(room, "cpu_isa", lambda: "amx")
    monkeypatch.setattr(room.platform, "machine", lambda: "x86_64")
    found = not_measured("vnni")
    assert (found.status, found.reason, found.isa) == ("not measured", "this CPU sums exactly (amx)", "vnni")
    data = rows_of(4)
    report, subject = scored(made[0], data)
    monkeypatch.setattr(OnnxEngine, "__init__", None)
    shown = with_saturation(report, [subject], data)
    assert shown.saturation.exact is None
    assert "With saturating sums: not measured, this CPU sums exactly (amx)." in shown.to_markdown()
    monkeypatch.setattr(room.platform, "machine", lambda: "aarch64")
    assert not_measured(None).reason == "this processor is no x86, whose sums alone saturate"


def test_a_score_that_depends_on_the_sums_is_a_doubt():
    found = sample_report().saturation
    (sentence,) = doubts(found)
    assert "(it was made for avx2) scores 82.3 % with exact sums and 81.1 % with saturating ones on 1,000" in sentence
    same = found.model_copy(update={"drop": found.drop.model_copy(update={"value": 0.0})})
    assert doubts(same) == []
    assert doubts(Saturation(status="not measured", reason="no", isa=None)) == []
