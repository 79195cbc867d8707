"""The run directory: stage folders that are whole or absent, the attempts on a stage, the lock."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compressor.errors import InputError
from compressor.model.digest import model_digest
from compressor.stage import Decision, Stage, made_folder

UNFINISHED = (
    "checkpoint",
    "cache",
    "cache-*",
    "random",
    "cut-*",
    "phase-*/checkpoint",
    "controls/*/checkpoint",
    "controls/*/phase-*/checkpoint",
    "controls/*-*",
)
"""What a stage needs while it is made and not afterwards."""


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is either the old or the new one, whole."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_json(path: Path) -> Any:
    """The JSON in a file, or None where there is no file or no whole JSON in it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class Attempt:
    """One try at a stage: its folder, its number, the seconds that earlier tries took."""

    folder: Path
    number: int
    seconds_before: float
    started: float


class RunDirectory:
    """`runs/<name>`: where stages, report and final model of one recipe lie."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stages = root / "stages"
        self.report = root / "report"
        self.final = root / "final"
        self.answers = root / "answers"

    def stage(self, stage_id: str) -> Path:
        """Folder of a finished stage."""
        return self.stages / stage_id

    def controls(self, stage_id: str) -> dict[str, Path]:
        """Name to folder of each control that a distill stage trained beside its student; empty without any."""
        folder = self.stage(stage_id) / "controls"
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        return {path.name: path for path in found if (path / "model").is_dir()}

    def partial(self, stage_id: str) -> Path:
        """Folder of a stage that is being made."""
        return self.stages / f"{stage_id}.partial"

    def record(self, stage_id: str) -> dict[str, Any] | None:
        """stage.json of a finished stage, or None."""
        found = read_json(self.stage(stage_id) / "stage.json")
        return found if isinstance(found, dict) else None

    def made(self) -> list[str]:
        """Ids of the finished stages, in order of name."""
        folders = sorted(self.stages.iterdir()) if self.stages.is_dir() else []
        return [one.name for one in folders if not one.name.endswith(".partial") and self.record(one.name) is not None]

    def find_key(self, key: str, stage_id: str) -> str | None:
        """Id of a finished stage with that key, `stage_id` itself if it has it; None without one."""
        if (self.record(stage_id) or {}).get("key") == key:
            return stage_id
        return next((one for one in self.made() if (self.record(one) or {}).get("key") == key), None)

    def adopt(self, found: str, stage_id: str, *, keep: bool) -> None:
        """Rename a finished stage whose key is wanted under another id; copy it where `keep` says both ids stand."""
        if found == stage_id:
            return
        self._displace(stage_id)
        if keep:
            copied = self.stages / f"{stage_id}.copy.partial"
            shutil.rmtree(copied, ignore_errors=True)
            shutil.copytree(self.stage(found), copied)
            os.replace(copied, self.stage(stage_id))
        else:
            os.replace(self.stage(found), self.stage(stage_id))
        record = self.record(stage_id) or {}
        write_json(self.stage(stage_id) / "stage.json", {**record, "id": stage_id})

    def _displace(self, stage_id: str) -> None:
        """Put a finished stage aside, where it is still found by its key."""
        number = 0
        while (aside := self.stages / f"{stage_id}.moved{number}").exists():
            number += 1
        if self.stage(stage_id).exists():
            os.replace(self.stage(stage_id), aside)

    def tidy(self, stage_ids: Sequence[str]) -> None:
        """Remove stages that were put aside and not wanted, and what was begun of stages that stand."""
        for folder in self.stages.glob("*.moved*"):
            shutil.rmtree(folder, ignore_errors=True)
        for stage_id in stage_ids:
            if self.stage(stage_id).exists():
                shutil.rmtree(self.partial(stage_id), ignore_errors=True)

    def begin(self, stage: Stage, key: str, record: Mapping[str, Any]) -> Attempt:
        """A folder to make a stage in; what an interrupted try left is kept where the stage can go on from it."""
        folder = self.partial(stage.id)
        earlier = read_json(folder / "stage.json")
        same = isinstance(earlier, dict) and earlier.get("key") == key
        attempts, seconds = 0, 0.0
        if same:
            attempts = int(earlier["attempts"])
            seconds = float(earlier["seconds"]) + _seconds_at_work(folder, earlier)
        if folder.exists() and not (same and stage.resumes()):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for stale in ("model", "onnx", "model.partial", "candidate-*"):
            for path in folder.glob(stale):
                shutil.rmtree(path, ignore_errors=True)
        (folder / "decisions.jsonl").unlink(missing_ok=True)
        attempt = Attempt(folder, attempts + 1, seconds, time.time())
        started = datetime.fromtimestamp(attempt.started, UTC).isoformat(timespec="seconds")
        write_json(
            folder / "stage.json",
            {**record, "key": key, "seconds": seconds, "attempts": attempt.number, "started": started},
        )
        return attempt

    def commit(self, stage: Stage, attempt: Attempt, extra: Mapping[str, Any]) -> None:
        """Make a finished `.partial` the stage's folder."""
        for name in stage.promised():
            if not (attempt.folder / name).exists():
                raise AssertionError(f"stage {stage.id} promised {name} and did not make it")
        record = read_json(attempt.folder / "stage.json")
        seconds = round(attempt.seconds_before + time.time() - attempt.started, 3)
        digest = model_digest(attempt.folder / "model")
        write_json(attempt.folder / "stage.json", {**record, "seconds": seconds, "model": digest, **extra})
        for pattern in UNFINISHED:
            for leftover in attempt.folder.glob(pattern):
                shutil.rmtree(leftover, ignore_errors=True)
        shutil.rmtree(self.stage(stage.id), ignore_errors=True)
        _sync(attempt.folder)
        os.replace(attempt.folder, self.stage(stage.id))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory; another run in it is refused."""
        made_folder(self.root)
        with (self.root / ".lock").open("w") as handle:
            _lock(handle, self.root)
            yield


def append_decision(folder: Path, stage_id: str, decision: Decision) -> None:
    """Add a line to a stage's decisions.jsonl."""
    line = json.dumps({"stage": stage_id, **asdict(decision)}, ensure_ascii=False)
    with (folder / "decisions.jsonl").open("a", encoding="utf-8") as handle:
        handle.write(line + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a jsonl file; a torn last line is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def _seconds_at_work(folder: Path, record: Mapping[str, Any]) -> float:
    """How long a killed try was at work: from its start to the last file it wrote."""
    last = max((path.stat().st_mtime for path in folder.rglob("*")), default=0.0)
    return max(0.0, last - datetime.fromisoformat(str(record["started"])).timestamp())


def _sync(folder: Path) -> None:
    """Bring a folder's files to the disk before it is renamed."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())


def _lock(handle: Any, root: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: two runs in one directory are not kept apart there
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise InputError(f"{root} is in use by another run; wait for it or choose another --out") from None
