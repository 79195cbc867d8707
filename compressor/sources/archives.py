"""Files and folders out of zip and tar archives, written only below the folder they are meant for."""

from __future__ import annotations

import difflib
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from compressor.errors import InputError

MOST_BYTES = 20 * 10**9
"""Bytes taken out of one archive at most."""
MOST_GROWTH = 1000
"""How many times its own size an archive may give; deflate reaches 1,032, and only on a single repeated byte."""
ALWAYS_ALLOWED = 100 * 10**6
"""Bytes that even the smallest archive may give."""
BLOCK = 1 << 20


@dataclass(frozen=True)
class Member:
    """An entry of an archive: its name as written, and whether it is a plain file, a folder or something else."""

    name: str
    kind: str


class Archive(Protocol):
    """What extraction needs of an archive."""

    def members(self) -> list[Member]:
        """All entries."""

    def open(self, name: str) -> IO[bytes]:
        """The bytes of a plain file."""


@dataclass(frozen=True)
class _Zip:
    file: zipfile.ZipFile

    def members(self) -> list[Member]:
        return [Member(info.filename, _zip_kind(info)) for info in self.file.infolist()]

    def open(self, name: str) -> IO[bytes]:
        return self.file.open(name)


@dataclass(frozen=True)
class _Tar:
    file: tarfile.TarFile

    def members(self) -> list[Member]:
        return [
            Member(info.name, "file" if info.isreg() else "folder" if info.isdir() else "link or device")
            for info in self.file.getmembers()
        ]

    def open(self, name: str) -> IO[bytes]:
        opened = self.file.extractfile(name)
        assert opened is not None, "only plain files are opened"
        return opened


def extract(archive: Path, inside: str, target: Path, *, name: str, drop_top: bool = False) -> None:
    """The file or folder `inside` an archive, as `target`.

    Args:
        name: what the archive is called in errors.
        drop_top: leave out the one folder that all members of an sdist lie in.
    Raises: InputError for a member that is not there, a link or device, a path that leads outside, a broken archive,
    or one that unpacks to far more than it holds (over 20 GB, or over 100 MB and 1,000 times its size).
    """
    wanted = PurePosixPath(inside.strip("/"))
    if not wanted.parts or ".." in wanted.parts:
        raise InputError(f"{name}: {inside!r} is no path inside the archive; write one such as folder/file.txt")
    try:
        with _opened(archive, name) as opened:
            members = opened.members()
            top = 1 if drop_top else 0
            found = [(member, relative) for member in members if (relative := _below(member.name, wanted, top))]
            if not found:
                raise InputError(f"{name} holds no {str(wanted)!r}; {_nearest(members, str(wanted), top)}")
            most = min(MOST_BYTES, max(ALWAYS_ALLOWED, MOST_GROWTH * archive.stat().st_size))
            left = most
            for member, relative in found:
                left -= _write(opened, member, target, relative, name=name, most=left)
                if left < 0:
                    raise InputError(
                        f"{name}: {str(wanted)!r} unpacks to more than {most / 1e6:,.0f} MB; the archive is not to be "
                        "trusted"
                    )
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError, zlib.error, lzma.LZMAError) as problem:
        raise InputError(f"{name} is a broken archive: {problem}") from problem
    except OSError as problem:
        if problem.errno is not None:  # the disk's; gzip and bz2 give theirs no number
            raise
        raise InputError(f"{name} is a broken archive: {problem}") from problem


@contextmanager
def _opened(archive: Path, name: str) -> Iterator[Archive]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            yield _Zip(file)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            yield _Tar(tar)
            while tar.fileobj is not None and tar.fileobj.read(BLOCK):
                pass  # the checksum of a tar.gz stands at its very end and is looked at there
    else:
        raise InputError(f"{name} is neither a zip nor a tar archive, so nothing can be taken out of it")


def _zip_kind(info: zipfile.ZipInfo) -> str:
    if info.is_dir():
        return "folder"
    mode = info.external_attr >> 16
    return "file" if stat.S_IFMT(mode) in {0, stat.S_IFREG} else "link or device"


def _below(member: str, wanted: PurePosixPath, top: int) -> PurePosixPath | None:
    """Path of a member from the parent of `wanted` on, its first part being wanted's name; None outside `wanted`."""
    parts = [part for part in member.replace("\\", "/").split("/") if part not in {"", "."}][top:]
    depth = len(wanted.parts)
    return PurePosixPath(*parts[depth - 1 :]) if tuple(parts[:depth]) == wanted.parts else None


def _write(archive: Archive, member: Member, target: Path, relative: PurePosixPath, *, name: str, most: int) -> int:
    """Bytes written of a member: all of it, or some number above `most` where it has more than that."""
    if ".." in relative.parts or member.name.startswith(("/", "\\")) or re.match("[A-Za-z]:", member.name):
        raise InputError(f"{name}: member {member.name!r} leads outside its folder; the archive is not to be trusted")
    path, written = target.joinpath(*relative.parts[1:]), 0
    if member.kind == "folder":
        path.mkdir(parents=True, exist_ok=True)
    elif member.kind == "file":
        path.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(member.name) as source, path.open("wb") as copy:
            while written <= most and (block := source.read(BLOCK)):
                written += copy.write(block)
    else:
        raise InputError(f"{name}: member {member.name!r} is a {member.kind}; only plain files and folders are taken")
    return written


def _nearest(members: list[Member], wanted: str, top: int) -> str:
    names = ["/".join(member.name.strip("/").split("/")[top:]) for member in members]
    names = [name for name in names if name]
    close = difflib.get_close_matches(wanted, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    tops = list(dict.fromkeys(name.split("/")[0] for name in names))
    return f"at its top are {', '.join(tops[:10])}{' ...' if len(tops) > 10 else ''}"
