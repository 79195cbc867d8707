"""Pure parts of the INT8 benchmark: rows, folds, the table, and what a profile says."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from compressor.data.rows import DataSets, Rows
from compressor.data.settings import Task
from compressor.model.manifest import LayerShape, Shapes

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


def rows(start: int, count: int) -> Rows:
    numbers = range(start, start + count)
    return Rows(tuple(f"text {number}" for number in numbers), tuple(number % 2 for number in numbers))


def answered(
    subject: str, right: list[int], *, size: int = 22_000_000, fold: int | None = None, **more: object
) -> dict:
    return {
        "what": "answers",
        "data": "movies",
        "layers": 6,
        "fold": fold,
        "subject": subject,
        "bytes": size,
        "rows": len(right),
        "accuracy": float(np.mean(right)),
        "agreement": float(np.mean(right)),
        "right": np.packbits(np.array(right, dtype=bool)).tobytes().hex(),
        **more,
    }


def timing(**milliseconds: list[float]) -> dict:
    names = {"fp32_aa": "fp32/aa", "nncf_openvino": "nncf openvino"}
    series = {names.get(name, name): values for name, values in milliseconds.items()}
    return {
        "what": "timing",
        "data": "movies",
        "layers": 6,
        "at": "now",
        "threads": 2,
        "rounds": 3,
        "tokens": [8, 26, 50],
        "quality": {"grade": "fair", "because": ["shared"]},
        "machine": {"cpu": "some", "flags": ["avx2"]},
        "p50_ms": series,
        "median_ms": {name: [float(np.median(values)), min(values), max(values)] for name, values in series.items()},
    }


def test_every_row_is_held_out_once_and_never_trained_on_then() -> None:
    from int8_data import FOLDS, held_out

    first = rows(0, 40)
    again = Rows((*rows(40, 29).texts, "text 3"), (*rows(40, 29).labels, 1))
    data = DataSets(
        Task(), ("a", "b"), ("text",), 32, train=first, select=again, test=rows(69, 30), unlabelled=rows(0, 0)
    )
    held = [held_out(data, number) for number in range(FOLDS)]
    assert sorted(text for one in held for text in one.test.texts) == sorted(f"text {n}" for n in range(99))
    for one in held:
        parts = [set(part.texts) for part in (one.train, one.select, one.test)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 99


def test_all_sentences_of_a_review_are_in_one_part_and_all_parts_are_filled() -> None:
    from int8_data import part_of

    counts = {part: sum(part_of(str(n)) == part for n in range(300)) for part in ("test", "select", "train")}
    assert counts["test"] > counts["select"] > 10
    assert counts["train"] > 100


def test_the_table_holds_us_against_the_fastest_peer_and_what_was_asked_for() -> None:
    from int8_table import table

    fp32, worse = [1] * 995 + [0] * 5, [1] * 985 + [0] * 15
    lines = [
        answered("fp32", fp32, size=90_000_000),
        answered("ours", fp32[::-1], exact=answered("ours", worse)),
        answered("olive", worse),
        answered("nncf openvino", worse),
        timing(fp32=[4.0] * 3, fp32_aa=[4.0] * 3, ours=[1.4] * 3, olive=[2.0] * 3, nncf_openvino=[2.8] * 3),
    ]
    text = table(lines)
    assert "beside olive, the fastest peer: p50 0.700 (0.700 to 0.700) of at most 0.8: yes" in text
    assert "22.0 MB of at most 23: yes; 0.00 pp below fp32 of at most 0.3: yes; 99.50 % agreement" in text
    assert "score +1.00" in text


def test_of_lines_about_the_same_file_the_last_counts() -> None:
    from int8_table import table

    right = [1] * 10
    lines = [answered("fp32", right), answered("ours", right, size=30_000_000), answered("ours", right)]
    assert "22.0 MB of at most 23: yes" in table(lines)
    assert "30.0" not in table(lines)


def test_folds_are_joined_before_scores_are_compared() -> None:
    from int8_table import table

    lines = [
        answered("fp32", [1] * 8, fold=0),
        answered("ours", [1] * 8, fold=0),
        answered("fp32", [1] * 4, fold=1),
        answered("ours", [0] * 4, fold=1),
    ]
    assert "| ours | 66.67 | -33.33" in table(lines)


def test_products_count_every_int8_product_of_uneven_layers() -> None:
    from ceiling import operations, products, products_graph

    shapes = Shapes(32, (LayerShape(2, 8, 64), LayerShape(0, 8, 16)), 100)
    assert products(shapes) == [(32, 48), (16, 32), (32, 64), (64, 32), (32, 16), (16, 32)]
    assert operations(shapes, 10) == 20 * (32 * 48 + 16 * 32 + 2 * 32 * 64 + 2 * 32 * 16)
    assert len(products_graph(shapes).graph.node) == 6


def test_a_profile_names_operators_by_the_time_of_a_run_without_its_warm_up() -> None:
    from ceiling import by_operator

    slow, fast = (
        {"name": "n_kernel_time", "dur": dur, "args": {"op_name": name}} for dur, name in ((90, "A"), (10, "B"))
    )
    cold = {**slow, "dur": 9000}
    other = {"name": "session", "dur": 5, "args": {}}
    found = by_operator([cold, fast, other, *[slow, fast] * 9], runs=10)
    assert found == [
        {"operator": "A", "nodes": 1, "microseconds": 90.0, "share": 0.9},
        {"operator": "B", "nodes": 1, "microseconds": 10.0, "share": 0.1},
    ]
