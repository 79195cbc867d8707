"""`make test-gpu` where there is no device: every test is skipped, the JSON says so, and it is no success."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SMALL = """
import pytest
import torch

@pytest.mark.gpu
def test_on_a_device(record_property):
    record_property("figure", 0.5)
    if not torch.cuda.is_available():
        pytest.skip("none here")

def test_of_no_interest():
    raise AssertionError
"""


def test_the_gpu_tests_write_one_json_and_pass_on_a_device_alone(tmp_path: Path):
    out, small = tmp_path / "kept" / "gpu.json", tmp_path / "test_small.py"
    small.write_text(SMALL)
    line = re.search(
        r"^test-gpu:.*\n\t.*PYTHONPATH=tests .*-m (pytest .* tests)$", (ROOT / "Makefile").read_text(), re.M
    )
    assert line is not None
    options = line[1].replace("$(GPU_JSON)", str(out)).split()
    options[-1] = str(small)
    env = {**os.environ, "PYTHONPATH": "tests", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", *options, "-c", "pyproject.toml", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    found = json.loads(out.read_text())
    assert (found["device"], found["counts"]) == (None, {"passed": 0, "failed": 0, "skipped": 1})
    assert "CPUExecutionProvider" in found["providers"]
    (test,) = found["tests"].values()
    assert (test["outcome"], test["reason"], test["figures"]) == ("skipped", "Skipped: none here", {"figure": 0.5})
    assert {"torch", "onnxruntime"} <= set(found["versions"])


def test_there_are_tests_for_it():
    text = (ROOT / "tests" / "runtime" / "test_on_gpu.py").read_text()
    assert "pytestmark = pytest.mark.gpu" in text
    assert len(re.findall(r"^def test_", text, re.M)) >= 8
