"""What is known of the machine."""

import json
import subprocess
import sys
from pathlib import Path

from compressor.bench.machine import fingerprint, pick_cpus, stolen_seconds, throttled, versions
from compressor.bench.settings import TARGETS, Benchmark


def test_a_fingerprint_is_json_and_names_processor_and_versions():
    found = json.loads(json.dumps(fingerprint()))
    assert found["cpu"]
    assert found["usable"] >= 1
    assert found["versions"]["numpy"]


def test_a_library_that_is_not_installed_is_left_out():
    assert versions(("numpy", "no-such-library-anywhere")).keys() == {"numpy"}


def test_pinning_takes_one_thread_of_each_core_first(tmp_path: Path, monkeypatch):
    from compressor.bench import machine

    monkeypatch.setattr(machine, "siblings", lambda cpu: str(cpu % 2))
    assert pick_cpus(2, (0, 1, 2, 3)) == (0, 1)
    assert pick_cpus(3, (0, 2, 1, 3)) == (0, 1, 2)
    assert pick_cpus(99, (0, 1)) == (0, 1)


def test_what_the_system_does_not_tell_is_none(tmp_path: Path):
    assert stolen_seconds(tmp_path / "stat") is None
    assert throttled(tmp_path) is None


def test_the_default_benchmark_names_a_target_that_exists():
    assert Benchmark().targets[0] in TARGETS


def test_bench_loads_no_heavy_library():
    heavy = ("torch", "transformers", "onnxruntime", "evaluate", "pandas", "scipy")
    code = (
        "import sys, compressor.bench.isolation, compressor.bench.machine, compressor.bench.settings; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
