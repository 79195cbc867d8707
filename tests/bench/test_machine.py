"""What is known of the machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from compressor.bench.machine import (
    fingerprint,
    pick_cpus,
    pressure,
    quality,
    same_machine,
    stolen_seconds,
    throttled,
    versions,
)
from compressor.bench.settings import TARGETS, Benchmark
from compressor.bench.statistics import Interval
from compressor.device import cpu_quota


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
    assert stolen_seconds(path=tmp_path / "stat") is None
    assert throttled(tmp_path) is None
    assert pressure(tmp_path / "cpu") is None
    assert cpu_quota(tmp_path, tmp_path / "cgroup") is None


def test_the_default_benchmark_names_a_target_that_exists():
    assert Benchmark().targets[0] in TARGETS


def test_bench_loads_no_heavy_library():
    heavy = ("torch", "transformers", "onnxruntime", "evaluate", "pandas", "scipy")
    code = (
        "import sys, compressor.bench.isolation, compressor.bench.machine, compressor.bench.settings; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def groups(folder: Path, own: str, **files: str) -> float | None:
    """The quota found under a made-up /sys/fs/cgroup."""
    for path, content in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)
    (folder / "own").write_text(own)
    return cpu_quota(folder, folder / "own")


def test_a_quota_of_the_first_control_groups_is_read(tmp_path: Path):
    files = {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}
    assert groups(tmp_path, "3:cpu,cpuacct:/box\n", **files) is None
    files = {"cpu/box/cpu.cfs_quota_us": "150000\n", "cpu/box/cpu.cfs_period_us": "100000\n"}
    assert groups(tmp_path, "4:memory:/else\n3:cpu,cpuacct:/box\n", **files) == 1.5


def test_the_least_quota_of_the_second_control_groups_holds(tmp_path: Path):
    files = {"cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n", "a/b/cpu.max": "200000 100000\n"}
    assert groups(tmp_path, "0::/a/b\n", **files) == 0.5
    assert groups(tmp_path, "0::/\n", **{"cpu.max": "250000 100000\n"}) == 2.5
    assert groups(tmp_path, "0::/\n", **{"cpu.max": "max 100000\n"}) is None


def test_pressure_is_the_share_of_the_last_minute(tmp_path: Path):
    (tmp_path / "cpu").write_text("some avg10=22.50 avg60=49.70 avg300=26.40 total=1\nfull avg10=0.00 avg60=9.00\n")
    assert pressure(tmp_path / "cpu") == 0.497


CALM = {
    "busy_share": 0.02,
    "load": 0.5,
    "stolen_share": 0.0,
    "throttled": None,
    "noise": Interval(1.0, 0.99, 1.01),
}
PLAIN = {"usable": 4, "virtual": False, "governor": "performance", "quota": None, "pressure": 0.01}


def test_a_quiet_machine_is_good_and_says_why():
    found = quality(PLAIN, threads=4, **CALM)
    assert found.grade == "good"
    assert found.because == ("quiet, and the reference beside itself within 1.0 %",)


@pytest.mark.parametrize(
    ("machine", "conditions", "grade", "words"),
    [
        ({}, {"busy_share": 0.2}, "fair", "other work kept 20 % of the processors busy"),
        ({}, {"busy_share": 0.9}, "poor", "other work kept 90 %"),
        ({}, {"load": 6.0}, "fair", "6.0 processes wanted 4 processors"),
        ({"pressure": 0.3}, {}, "fair", "waited for a processor in 30 %"),
        ({"governor": "powersave"}, {}, "fair", "the governor powersave changes the clock"),
        ({}, {"stolen_share": 0.01}, "fair", "the host took 1.0 % of the time"),
        ({}, {"stolen_share": 0.2}, "poor", "the host took 20.0 %"),
        ({}, {"throttled": 3}, "poor", "heat slowed the processors 3 times"),
        ({"quota": 2.5}, {}, "poor", "a quota of 2.5 processors stops 4 threads"),
        ({"virtual": True}, {}, "fair", "virtual machine"),
        ({}, {"noise": None}, "fair", "not timed against itself"),
        ({}, {"noise": Interval(1.0, 0.93, 1.07)}, "fair", "up to 8 % off"),
        ({}, {"noise": Interval(1.1, 0.9, 1.3)}, "poor", "up to 30 % off"),
    ],
)
def test_what_disturbs_a_timing_lowers_the_grade_and_is_named(machine: dict, conditions: dict, grade: str, words: str):
    found = quality(PLAIN | machine, threads=4, **(CALM | conditions))
    assert found.grade == grade
    assert len(found.because) == 1
    assert words in found.because[0]


def test_the_worst_reason_comes_first_and_gives_the_grade():
    found = quality(PLAIN | {"virtual": True}, threads=4, **(CALM | {"throttled": 1}))
    assert (found.grade, found.because[0]) == ("poor", "heat slowed the processors 1 times")
    assert len(found.because) == 2


def test_a_quota_that_covers_the_threads_is_not_held_against_a_machine():
    assert quality(PLAIN | {"quota": 1.5}, threads=1, **CALM).grade == "good"


def test_a_machine_is_itself_and_no_other():
    here = dict(fingerprint())
    assert same_machine(here, json.loads(json.dumps(here))) == ()
    assert same_machine(here, here | {"versions": {"onnxruntime": "0.1"}, "load": 9.0}) == ()
    other = here | {"id": "other", "cpu": "Abacus", "memory_bytes": 10 * here["memory_bytes"]}
    reasons = same_machine(here, other)
    assert reasons[0] == f"processor: {here['cpu']} here, Abacus there"
    assert any(reason.startswith("memory: ") for reason in reasons)
    assert not any("fingerprint" in reason for reason in reasons)
    assert same_machine(here, here | {"id": "other"}) == (f"fingerprint: {here['id']} here, other there",)


def test_other_threads_and_a_machine_that_is_not_said_are_not_compared():
    one = {"id": "a", "timing": {"cpu": {"threads": 2}}}
    assert same_machine(one, {"id": "a", "timing": {"cpu": {"threads": 1}}}) == (
        "threads at target cpu: 2 here, 1 there",
    )
    assert same_machine(one, {"id": "a", "timing": {"server": {"threads": 1}}}) == (
        "threads: 2 at cpu here, 1 at server there",
    )
    assert same_machine(one, {"id": "a", "timing": {"server": {"threads": 2}}}) == ()
    assert same_machine(one, {}) == ("a run does not say what machine it was timed on",)


def test_time_taken_by_the_host_is_that_of_the_processors_asked_for(tmp_path: Path):
    lines = ["cpu  9 0 9 9 0 0 0 700 0 0", "cpu0 9 0 9 9 0 0 0 100 0 0", "cpu1 9 0 9 9 0 0 0 600 0 0", "intr 5"]
    (tmp_path / "stat").write_text("\n".join(lines))
    assert stolen_seconds(path=tmp_path / "stat") == 7.0
    assert stolen_seconds((1,), tmp_path / "stat") == 6.0
    assert stolen_seconds((0, 2), tmp_path / "stat") is None
