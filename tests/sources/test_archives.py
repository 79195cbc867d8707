import io
import random
import stat
import tarfile
import zipfile

import pytest

from compressor.errors import InputError
from compressor.sources import archives
from compressor.sources.archives import extract


def tar_of(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def zip_of(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            if content is None:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, content or b"/etc/passwd")
    return path


FORMS = pytest.mark.parametrize("make", [tar_of, zip_of])


@FORMS
def test_a_file_or_a_folder_comes_out_as_it_went_in(tmp_path, make):
    archive = make(tmp_path / "a", {"top/d/one.txt": b"1", "top/d/e/two.txt": b"2", "top/dd/three.txt": b"3"})
    extract(archive, "top/d/one.txt", tmp_path / "one.txt", name="a")
    extract(archive, "/d/", tmp_path / "d", name="a", drop_top=True)
    assert (tmp_path / "one.txt").read_bytes() == b"1"
    assert {p.relative_to(tmp_path / "d").as_posix() for p in (tmp_path / "d").rglob("*.txt")} == {
        "one.txt",
        "e/two.txt",
    }


@FORMS
def test_a_member_that_is_not_there_is_answered_with_the_nearest(tmp_path, make):
    archive = make(tmp_path / "a", {"data/rows.tsv": b"1"})
    with pytest.raises(InputError, match=r"pack holds no 'data/row\.tsv'; did you mean 'data/rows\.tsv'\?"):
        extract(archive, "data/row.tsv", tmp_path / "x", name="pack")
    with pytest.raises(InputError, match="pack holds no 'zzz'; at its top are data"):
        extract(archive, "zzz", tmp_path / "x", name="pack")


@FORMS
@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("d/../../escaped.txt", b"x", "leads outside its folder"),
        ("/d/absolute.txt", b"x", "leads outside its folder"),
        ("d/link", None, "only plain files and folders are taken"),
    ],
)
def test_members_that_lead_outside_are_refused(tmp_path, make, member, content, message):
    archive = make(tmp_path / "a", {member: content})
    with pytest.raises(InputError, match=message):
        extract(archive, "d", tmp_path / "in" / "d", name="a")
    assert not (tmp_path / "escaped.txt").exists()


def test_what_is_no_archive_or_a_broken_one_is_refused(tmp_path):
    (tmp_path / "text").write_text("words")
    with pytest.raises(InputError, match="pack is neither a zip nor a tar archive"):
        extract(tmp_path / "text", "d", tmp_path / "x", name="pack")
    whole = zip_of(tmp_path / "a", {"d/one": b"1" * 100}).read_bytes()
    (tmp_path / "broken").write_bytes(whole.replace(b"1" * 100, b"2" * 100))
    with pytest.raises(InputError, match="pack is a broken archive: Bad CRC-32"):
        extract(tmp_path / "broken", "d", tmp_path / "x", name="pack")


@pytest.mark.parametrize("inside", ["", "/", "../up"])
def test_a_path_inside_must_lead_inside(tmp_path, inside):
    archive = zip_of(tmp_path / "a", {"d/one": b"1"})
    with pytest.raises(InputError, match="is no path inside the archive"):
        extract(archive, inside, tmp_path / "x", name="a")


@FORMS
def test_an_archive_that_unpacks_to_far_more_than_it_holds_is_stopped(tmp_path, make, monkeypatch):
    monkeypatch.setattr(archives, "BLOCK", 100)
    members = {"d/one": b"1" * 600, "d/two": b"2" * 600}
    archive = make(tmp_path / "a", members)
    monkeypatch.setattr(archives, "MOST_BYTES", 1200)
    extract(archive, "d", tmp_path / "whole", name="pack")
    monkeypatch.setattr(archives, "MOST_BYTES", 1199)
    with pytest.raises(InputError, match=r"^pack: 'd' unpacks to more than 0 MB; the archive is not to be trusted$"):
        extract(archive, "d", tmp_path / "x", name="pack")
    assert sum(path.stat().st_size for path in (tmp_path / "x").iterdir()) <= 1199 + 100
    monkeypatch.setattr(archives, "MOST_BYTES", 10**10)
    monkeypatch.setattr(archives, "MOST_GROWTH", 0)
    extract(archive, "d", tmp_path / "small", name="pack")
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED", 500)
    with pytest.raises(InputError, match="unpacks to more than 0 MB"):
        extract(archive, "d", tmp_path / "y", name="pack")


@pytest.mark.parametrize("form", ["gz", "bz2", "xz"])
def test_a_damaged_tar_is_refused_by_name(tmp_path, form):
    content = random.Random(0).randbytes(200_000)
    with tarfile.open(tmp_path / "a", f"w:{form}") as archive:
        info = tarfile.TarInfo("d/one")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    whole = (tmp_path / "a").read_bytes()
    for place in (len(whole) // 2, len(whole) - 6):
        damaged = bytearray(whole)
        damaged[place : place + 4] = bytes(byte ^ 0xFF for byte in damaged[place : place + 4])
        (tmp_path / "b").write_bytes(damaged)
        with pytest.raises(InputError, match=r"^pack is (a broken archive: |neither a zip nor a tar)"):
            extract(tmp_path / "b", "d", tmp_path / "x", name="pack")


def test_a_full_disk_is_not_blamed_on_the_archive(tmp_path):
    archive = zip_of(tmp_path / "a", {"d/one": b"1"})
    (tmp_path / "x").write_text("in the way")
    with pytest.raises(OSError, match=r"File exists|Not a directory"):
        extract(archive, "d", tmp_path / "x" / "y", name="pack")
