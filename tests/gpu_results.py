"""A pytest plugin that writes what the tests of mark `gpu` found into one JSON: `-p gpu_results --gpu-json FILE`.

A test's own figures are what it gives to `record_property`. Without a device nothing was tested, which is a failure.
"""

import importlib.metadata
import json
import platform
import time
from pathlib import Path

import pytest

LIBRARIES = ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "transformers", "numpy")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu-json", type=Path, required=True, help="file for the results")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Results(config.getoption("--gpu-json")), "gpu-results")


class Results:
    """Outcomes by test, written when the session ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started = time.time()
        self.tests: dict[str, dict] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        row = self.tests.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0, "reason": None, "figures": {}})
        row["seconds"] = round(row["seconds"] + report.duration, 3)
        row["figures"].update(dict(report.user_properties))
        if report.outcome != "passed":
            row["outcome"] = report.outcome
            row["reason"] = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)[-2000:]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        about = device()
        counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
        for row in self.tests.values():
            counts[row["outcome"]] += 1
        content = {
            "schema": 1,
            **about,
            "system": platform.platform(),
            "python": platform.python_version(),
            "versions": versions(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            "seconds": round(time.time() - self.started, 1),
            "counts": counts,
            "tests": self.tests,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if about["device"] is None or not counts["passed"]:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def device() -> dict:
    """Name, capability and memory of the first NVIDIA device; None where torch sees none."""
    import onnxruntime
    import torch

    providers = onnxruntime.get_available_providers()
    if not torch.cuda.is_available():
        return {"device": None, "cuda": torch.version.cuda, "providers": providers}
    about = torch.cuda.get_device_properties(0)
    return {
        "device": about.name,
        "capability": f"{about.major}.{about.minor}",
        "memory_bytes": about.total_memory,
        "cuda": torch.version.cuda,
        "providers": providers,
    }


def versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
