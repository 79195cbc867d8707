"""What `compress doctor` finds out about this machine; never the network, and of large libraries onnxruntime alone."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compressor.bench.machine import FLAGS
from compressor.device import cpu_flags, cpu_name, has_vnni, native_bf16, training_device, usable_threads
from compressor.sources.cache import cache_folder

DISTRIBUTION = "bert-compressor"
LEAST_PYTHON = (3, 11)


@dataclass(frozen=True)
class Finding:
    """One check: whether it is well, and in words what was found and what to do."""

    state: Literal["ok", "note", "fail"]
    subject: str
    words: str


def findings(*, folder: Path) -> list[Finding]:
    """Python, libraries, engines, processor, threads, cache, pip and write access to `folder`, in that order."""
    return [
        _python(),
        *_libraries(),
        *engines(),
        *_processor(),
        _threads(),
        _writable("cache", cache_folder(), "set COMPRESSOR_CACHE to a folder that can be written"),
        _pip(),
        _writable("runs", folder, "run in a folder that can be written, or use --out"),
    ]


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] < LEAST_PYTHON:
        return Finding("fail", "python", f"{version}; needs {'.'.join(map(str, LEAST_PYTHON))} or newer")
    return Finding("ok", "python", f"{version} ({sys.executable})")


def _libraries() -> list[Finding]:
    """Each library that is required, its version against the least one that works."""
    try:
        wanted = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return [Finding("fail", "libraries", f"{DISTRIBUTION} is not installed; run pip install {DISTRIBUTION}")]
    found = []
    for line in wanted:
        match = re.match(r"([A-Za-z0-9._-]+)\s*(?:>=\s*([0-9.]+))?", line)
        if match is None or "extra ==" in line:
            continue
        found.append(_library(match[1], match[2] or "0"))
    return found


def _library(name: str, least: str) -> Finding:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding("fail", name, f"missing; run pip install '{name}>={least}'")
    if _numbers(version) < _numbers(least):
        return Finding("fail", name, f"{version} is too old; run pip install '{name}>={least}'")
    return Finding("ok", name, version)


def _numbers(version: str) -> tuple[int, ...]:
    """The release numbers of a version, for comparison.

    >>> _numbers("2.13.0+cpu") > _numbers("2.6")
    True
    """
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def engines() -> list[Finding]:
    """What can run a model here: onnxruntime with its providers, torch, and OpenVINO where it is installed."""
    found = [_onnxruntime()]
    torch = _version("torch")
    if torch is not None:
        where = "the CPU and an NVIDIA device" if training_device() == "gpu" else "the CPU"
        found.append(Finding("ok", "engine", f"torch {torch}, on {where}"))
    openvino = _version("openvino")
    words = "openvino is not installed; pip install 'bert-compressor[openvino]' where you want it"
    if openvino is not None:
        words = f"openvino {openvino}, on the CPU"
    return [*found, Finding("note" if openvino is None else "ok", "engine", words)]


def _onnxruntime() -> Finding:
    """The version of onnxruntime and its providers, which it tells once it is loaded."""
    try:
        import onnxruntime
    except ImportError as error:
        return Finding("fail", "engine", f"onnxruntime cannot be loaded ({error}); run pip install onnxruntime")
    names = ", ".join(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
    return Finding("ok", "engine", f"onnxruntime {onnxruntime.__version__}, providers {names}")


def _version(name: str) -> str | None:
    """Of an installed distribution; None where it is missing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> list[Finding]:
    flags = [flag for flag in FLAGS if flag in cpu_flags()]
    speaks = ", ".join(flags) or "none of the instruction sets that matter are known"
    found = [Finding("ok", "processor", f"{cpu_name()} ({speaks})")]
    if not has_vnni():
        found.append(Finding("note", "INT8", "no VNNI here: INT8 weights fit into sums of 16 bits; less speed gained"))
    if not native_bf16():
        found.append(Finding("note", "bf16", "not native here: precision auto trains in fp32"))
    return found


def _threads() -> Finding:
    usable, cores = usable_threads(), os.cpu_count() or 1
    if usable < cores:
        return Finding("note", "threads", f"{usable} of {cores}: this process is limited to them")
    return Finding("ok", "threads", str(usable))


def _writable(subject: str, folder: Path, advice: str) -> Finding:
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        return Finding("fail", subject, f"{folder} cannot be written ({error.strerror}); {advice}")
    free = shutil.disk_usage(nearest).free / 1e9
    state: Literal["ok", "note"] = "ok" if free > 5 else "note"
    return Finding(state, subject, f"{folder} ({free:.0f} GB free)")


def _pip() -> Finding:
    command = [sys.executable, "-m", "pip", "--version", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return Finding("fail", "pip", "cannot be run, so pypi:// sources cannot be fetched; run python -m ensurepip")
    return Finding("ok", "pip", " ".join(done.stdout.split()[:2]))
