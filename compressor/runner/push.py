"""`push`: the finished model of a run, put on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import GateError, InputError
from compressor.model.manifest import MANIFEST_NAME
from compressor.runner.directory import read_json

NAME_PATTERN = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?"


@dataclass(frozen=True)
class Pushed:
    """What was put on the hub, or would be."""

    repo: str
    files: tuple[tuple[str, int], ...]
    """Name and bytes of each file, in order of name."""
    url: str | None
    """Where it is now; None for a dry run."""


def push(
    run: Path,
    repo: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    force: bool = False,
    bars: bool = False,
    hub: Callable[[], Any] | None = None,
) -> Pushed:
    """The files of RUN's `final/`, uploaded to the hub as one commit to the model repository `repo`, made if need be.

    The token is that of the hub's own login (`hf auth login`, or HF_TOKEN).

    Args:
        run: run directory, or the folder of a finished model.
        repo: ORG/NAME.
        private: makes a new repository private; one that is there keeps what it is.
        dry_run: lists the files and asks the hub nothing.
        force: also uploads a model whose budget failed, or that a smoke run made.
        bars: shows the hub's own progress bars on stderr.
        hub: makes the HfApi to ask; None makes one by the environment.
    Raises: InputError for a run without `final/`, a name that is no ORG/NAME, no login, no network or a refusal of the
        hub; GateError where the budget failed, or the model learned nothing, and `force` is not given.
    """
    final = _final(run)
    if repo.count("/") != 1 or not all(re.fullmatch(NAME_PATTERN, part) for part in repo.split("/")):
        raise InputError(f"the repository must be ORG/NAME in letters, digits, '-', '_' and '.' (got {repo!r})")
    _require_kept(final, force=force)
    files = _files(final)
    if dry_run:
        return Pushed(repo, files, None)
    names = [name for name, _ in files]
    return Pushed(repo, files, _upload(final, repo, names, private=private, bars=bars, hub=hub))


def _final(run: Path) -> Path:
    """The folder to upload: `final/` of a run, or the folder itself where it is a finished model."""
    if (run / "final" / MANIFEST_NAME).is_file():
        return run / "final"
    if (run / "stages").is_dir() or not run.is_dir():
        raise InputError(f"{run} holds no final/, so there is nothing to push; finish the run first: compress RECIPE")
    if "verdict" not in (read_json(run / MANIFEST_NAME) or {}):
        raise InputError(f"{run} is neither a run nor a finished model; give a run directory such as runs/NAME")
    return run


def _require_kept(final: Path, *, force: bool) -> None:
    """GateError where the model's own manifest says that it broke its budget, or comes from a smoke run."""
    told = read_json(final / MANIFEST_NAME) or {}
    fault = "broke its budget" if told.get("verdict") == "fail" else "a smoke run made" if told.get("smoke") else None
    if fault is not None and not force:
        raise GateError(f"{final} holds a model that {fault}, so it is not pushed; push it all the same with --force")


def _files(final: Path) -> tuple[tuple[str, int], ...]:
    """What is uploaded; InputError for a link, behind which any file of this machine may lie."""
    found = []
    for path in sorted(final.rglob("*")):
        name = path.relative_to(final)
        if path.is_symlink():
            raise InputError(f"{path} is a link; put the file itself there, or remove it")
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in name.parts):
            found.append((name.as_posix(), path.stat().st_size))
    return tuple(found)


def _upload(
    final: Path, repo: str, names: list[str], *, private: bool, bars: bool, hub: Callable[[], Any] | None
) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    (enable_progress_bars if bars else disable_progress_bars)()
    # a lost connection is one, too
    http_error = next(one for one in HfHubHTTPError.__mro__ if one.__name__ == "HTTPError")
    api = HfApi() if hub is None else hub()
    try:
        made = api.create_repo(repo, private=private or None, exist_ok=True)
        message = f"Upload {repo.split('/')[1]}"
        api.upload_folder(repo_id=repo, folder_path=final, commit_message=message, allow_patterns=names)
    except OfflineModeIsEnabled as error:
        raise InputError("HF_HUB_OFFLINE forbids the network, which push needs; unset it") from error
    except LocalTokenNotFoundError as error:
        raise InputError("there is no login of the hub here; run: hf auth login") from error
    except (HFValidationError, http_error, OSError) as error:
        raise InputError(f"the hub did not take {repo}: {_first_line(error)}; {_advice(error)}") from error
    return str(made)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _advice(error: Exception) -> str:
    """What to do, by the answer of the hub."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return "log in with a token that may write there: hf auth login"
    return "try again later" if status is None or status >= 500 else "choose another name or check your rights there"
