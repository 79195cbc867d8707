import importlib.util
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
from model_folders import TEXTS, write_classifier

from compressor.device import EXACT_FLAGS, EXACT_SUMS
from compressor.export import predict as shipped
from compressor.export.exporter import Exporter
from compressor.model.graph_file import HUB_FILES
from compressor.runtime.predictor import load

BLOCKED = ("torch", "transformers", "compressor")


@pytest.fixture(scope="module")
def desk(tmp_path_factory, tiny_classifier):
    """Folders `final` and `pairs`, and packages of BLOCKED names that cannot be imported."""
    root = tmp_path_factory.mktemp("predict")
    for name, columns in (("final", ("review",)), ("pairs", ("question", "answer"))):
        Exporter(write_classifier(root / f"{name}-source", tiny_classifier, text=columns)).export(root / name)
    for package in BLOCKED:
        (root / "blocked" / package).mkdir(parents=True)
        (root / "blocked" / package / "__init__.py").write_text(f"raise ImportError('{package} is not here')")
    return root


def predict(desk, *arguments, stdin=b"", folder="final"):
    """Exit code, answers and message of predict.py, run in a plain C locale."""
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONPATH": str(desk / "blocked")}
    command = [sys.executable, str(desk / folder / "predict.py"), *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, env=env, cwd=desk)
    lines = done.stdout.decode("utf-8").split("\n")
    assert lines.pop() == ""
    return done.returncode, [json.loads(line) for line in lines], done.stderr.decode("utf-8")


def expected(desk, texts, folder="final"):
    logits = load(desk / folder).logits(texts).astype(np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = powers / powers.sum(axis=1, keepdims=True)
    labels = load(desk / folder).predict(texts)
    return [
        {
            "label": label,
            "scores": {"bad": pytest.approx(float(bad), abs=1e-5), "good": pytest.approx(float(good), abs=1e-5)},
        }
        for label, (bad, good) in zip(labels, scores, strict=True)
    ]


def test_the_blocked_packages_really_cannot_be_imported(desk):
    for package in BLOCKED:
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(desk / "blocked")}
        command = [sys.executable, "-c", f"import {package}"]
        assert subprocess.run(command, env=env, cwd=desk, capture_output=True).returncode == 1


def test_text_lines_are_answered_as_load_does(desk):
    texts = ["a warm film", "dull", "", "das Frühstück 美味しい \u2028 très bon", " ", '{"not": json', "\ttab"]
    (desk / "rows.txt").write_bytes("\n".join(texts).encode() + b"\n")
    code, answers, message = predict(desk, "rows.txt")
    assert (code, message) == (0, "")
    assert answers == expected(desk, texts)
    assert predict(desk, stdin=(desk / "rows.txt").read_bytes())[1] == answers


def test_line_ends_a_byte_order_mark_and_a_missing_last_line_end_change_nothing(desk):
    plain = predict(desk, stdin="dull\n\nwärm\n".encode())
    assert len(plain[1]) == 3
    assert predict(desk, stdin="\ufeffdull\r\n\r\nwärm".encode()) == plain


def test_no_input_gives_no_answers(desk):
    assert predict(desk) == (0, [], "")


def test_json_lines_with_the_column_of_the_recipe(desk):
    texts = [*TEXTS[:5], "", "schön"]
    rows = [json.dumps({"id": 7, "review": text}, ensure_ascii=text.isascii()) for text in texts] + [""]
    (desk / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    code, answers, _ = predict(desk, "rows.jsonl")
    assert code == 0
    assert answers == expected(desk, [*texts, ""])
    assert predict(desk, stdin=(desk / "rows.jsonl").read_bytes())[1] == answers


def test_pairs_stand_in_two_columns_or_with_a_tab_between(desk):
    pairs = [("a dull plot", "warm actors"), ("", "good"), ("", "")]
    wanted = expected(desk, pairs, folder="pairs")
    rows = "".join(json.dumps({"answer": b, "question": a}) + "\n" for a, b in pairs)
    assert predict(desk, stdin=rows.encode(), folder="pairs")[1] == wanted
    lines = "".join(f"{a}\t{b}\n" for a, b in pairs[:2]) + "\n"
    assert predict(desk, stdin=lines.encode(), folder="pairs")[1] == wanted


def test_answers_come_while_the_input_is_still_open(desk):
    command = [sys.executable, str(desk / "final" / "predict.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        for text in (b"dull\n", b"warm\n"):
            running.stdin.write(text)
            running.stdin.flush()
            assert json.loads(running.stdout.readline())["label"] in ("bad", "good")
        running.stdin.close()
        assert running.wait() == 0


@pytest.mark.parametrize(
    ("stdin", "folder", "message"),
    [
        (
            b'{"review": "dull"}\n{"text": "dull"}\n',
            "final",
            "line 2 must have a text in column 'review'; its columns are text",
        ),
        (b'{"review": "dull"}\nplain\n', "final", "line 2 is not JSON"),
        (b'{"review": 3}\n', "final", "line 1 must have a text in column 'review'"),
        (b"dull\nw\xe4rm\n", "final", "line 2 is not UTF-8 (byte 1 of it)"),
        (b"only one\n", "pairs", "line 1 must hold question and answer, a tab between them (got 1)"),
    ],
)
def test_wrong_lines_are_named(desk, stdin, folder, message):
    code, _, said = predict(desk, stdin=stdin, folder=folder)
    assert code == 2
    assert said.startswith(f"predict.py: {message}")


def test_a_missing_file_and_a_lone_script_are_named(desk, tmp_path):
    code, _, said = predict(desk, "nowhere.txt")
    assert (code, "nowhere.txt" in said) == (2, True)
    (tmp_path / "predict.py").write_bytes((desk / "final" / "predict.py").read_bytes())
    code, _, said = predict(desk, folder=tmp_path)
    assert code == 2
    assert "holds no compressor.json; predict.py must lie in the folder it was written to" in said


def test_null_is_an_empty_text_and_odd_rows_are_named(desk):
    assert predict(desk, stdin=b'{"review": null}\n')[:2] == (0, expected(desk, [""]))
    for line, message in [
        (b'{"review": "\\ud83d"}', "line 2 has half a character (a lone surrogate) in column 'review'"),
        (b"[" * 100_000, "line 2 is not JSON: "),
        (b'{"text": null}', "line 2 must have a text in column 'review'"),
    ]:
        code, answers, said = predict(desk, stdin=b'{"review": "dull"}\n' + line + b"\n")
        assert (code, len(answers), said.count("\n")) == (2, 1, 1)
        assert said.startswith(f"predict.py: {message}")
    assert predict(desk, stdin=b"[" * 100_000)[0] == 0


@pytest.mark.parametrize("name", ["rows.ndjson", "rows.json", "rows.JSONL", "rows.txt", "rows"])
def test_json_lines_are_known_by_the_first_line_that_is_not_blank(desk, name):
    (desk / name).write_bytes(b'\n \n{"review": "dull"}\n')
    assert predict(desk, name)[:2] == (0, expected(desk, ["", "", "dull"]))
    assert predict(desk, stdin=(desk / name).read_bytes())[1] == predict(desk, name)[1]


def test_a_json_file_that_is_no_json_lines_is_not_taken_for_text(desk):
    (desk / "rows.json").write_text('[{"review": "dull"}]\n')
    code, answers, said = predict(desk, "rows.json")
    assert (code, answers) == (2, [])
    assert said.startswith("predict.py: line 1 must be a JSON object with review")


@pytest.mark.parametrize(
    ("isa", "flags", "slow"),
    [
        ("vnni", "avx2", True),
        ("vnni", "avx2 avx512_vnni", False),
        ("arm64_dotprod", "avx2", True),
        ("avx2", "avx2", False),
        (None, "avx2", False),
    ],
)
def test_a_model_for_exact_sums_is_summed_exactly_everywhere(desk, tmp_path, monkeypatch, isa, flags, slow):
    folder = shutil.copytree(desk / "final", tmp_path / "final")
    about = json.loads((folder / "compressor.json").read_text())
    (folder / "compressor.json").write_text(json.dumps({**about, "isa": isa}))
    found = importlib.util.spec_from_file_location("script", folder / "predict.py")
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    asked = []

    class Options(onnxruntime.SessionOptions):
        def add_session_config_entry(self, key, value):
            asked.append((key, value))
            super().add_session_config_entry(key, value)

    monkeypatch.setattr(script, "cpu_flags", lambda: set(flags.split()))
    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    script.Model(folder, 1)
    assert asked == ([("session.x64quantprecision", "1")] if slow else [])


def test_what_is_copied_into_the_script_is_what_the_package_says():
    assert set(shipped.EXACT) == EXACT_SUMS
    assert shipped.EXACT_FLAGS == EXACT_FLAGS
    graphs = {name: f"onnx/{shipped.GRAPHS.get(name, 'model')}.onnx" for name in HUB_FILES}
    assert graphs == HUB_FILES
