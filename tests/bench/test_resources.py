"""Memory and energy of processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from compressor.bench.resources import Energy, open_meter, peak_bytes
from compressor.errors import InputError


def domain(root: Path, name: str, microjoules: int, end: int = 1_000_000) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{end}\n")
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a process's memory")
def test_peak_memory_counts_what_was_given_back():
    program = (  # in a process of its own: this one may have held more before
        "import os; from compressor.bench.resources import peak_bytes; before = peak_bytes(os.getpid()); "
        "block = bytearray(300_000_000); held = peak_bytes(os.getpid()); del block; "
        "print(before, held, peak_bytes(os.getpid()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, held, after = map(int, done.stdout.split())
    assert held - before > 100_000_000
    assert after > 0.99 * held


def test_memory_that_is_not_told_is_none(tmp_path: Path):
    assert peak_bytes(os.getpid(), root=tmp_path) is None
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text("Name:\tx\nVmHWM:\t    2024 kB\n")
    assert peak_bytes(7, root=tmp_path) == 2024 * 1024


def test_energy_is_that_of_whole_packages_and_follows_a_counter_past_its_end(tmp_path: Path):
    first, second = domain(tmp_path, "intel-rapl:0", 900_000), domain(tmp_path, "intel-rapl:1", 0)
    domain(tmp_path, "intel-rapl:0:0", 0)
    meter = open_meter(tmp_path)
    (first / "energy_uj").write_text("100000")
    (second / "energy_uj").write_text("300000")
    assert meter.joules() == pytest.approx(0.2 + 0.3)
    assert meter.joules() == pytest.approx(0.5)


def test_energy_without_counters_is_not_guessed(tmp_path: Path):
    with pytest.raises(InputError, match=r"no energy counters \(RAPL\)"):
        open_meter(tmp_path)
    energy = Energy(tmp_path)
    assert energy.idle(lambda: "answer") == "answer"
    assert energy.of("model", 4, lambda: 7) == 7
    assert energy.per_call("model") is None
    assert "an estimate would be a guess" in energy.reason


def test_counters_that_cannot_be_read_are_a_reason(tmp_path: Path):
    (domain(tmp_path, "intel-rapl:0", 0) / "energy_uj").unlink()
    assert "may not be read here" in Energy(tmp_path).reason


def test_energy_of_a_call_is_what_idling_would_not_have_taken(tmp_path: Path):
    counter = domain(tmp_path, "intel-rapl:0", 0, end=10**12) / "energy_uj"
    now = [0.0]
    energy = Energy(tmp_path, clock=lambda: now[0])

    def pass_by(seconds: float, watts: float) -> None:
        now[0] += seconds
        counter.write_text(str(int(counter.read_text()) + round(seconds * watts * 1e6)))

    energy.idle(lambda: pass_by(0.5, 20.0))
    energy.of("model", 10, lambda: pass_by(2.0, 50.0))
    energy.of("quiet", 10, lambda: pass_by(2.0, 20.0))
    assert energy.per_call("model") == pytest.approx(2.0 * 30.0 / 10)
    assert energy.per_call("quiet") is None
    assert energy.reason is None
