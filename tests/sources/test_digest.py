import hashlib
import os

import pytest

from compressor.sources.cache import cache_folder, filling, write_atomically
from compressor.sources.digest import CACHED_FROM_BYTES, file_digest, folder_digest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSOR_CACHE", str(tmp_path / "cache"))


def test_a_file_digest_is_the_sha256_of_its_bytes(tmp_path):
    file = tmp_path / "small"
    file.write_bytes(b"rows")
    assert file_digest(file) == hashlib.sha256(b"rows").hexdigest()


def test_a_trusted_digest_is_kept_while_the_file_looks_the_same_and_a_real_run_hashes_again(tmp_path):
    file = tmp_path / "large"
    file.write_bytes(b"a" * CACHED_FROM_BYTES)
    before = file.stat()
    first = file_digest(file)
    with file.open("r+b") as opened:
        opened.write(b"b")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_digest(file, trust_cache=True) == first
    second = file_digest(file)
    assert second == hashlib.sha256(b"b" + b"a" * (CACHED_FROM_BYTES - 1)).hexdigest() != first
    assert file_digest(file, trust_cache=True) == second
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    file.write_bytes(b"c" * CACHED_FROM_BYTES)
    assert file_digest(file, trust_cache=True) == hashlib.sha256(b"c" * CACHED_FROM_BYTES).hexdigest()


def test_a_folder_digest_depends_on_names_and_bytes_of_what_matches_and_on_nothing_else(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "model.safetensors").write_bytes(b"w")
        (tmp_path / name / "sub" / "config.json").write_bytes(b"{}")
    (tmp_path / "two" / "README.md").write_bytes(b"words")
    patterns = ["*.safetensors", "*.json"]
    same = folder_digest(tmp_path / "one", patterns)
    assert folder_digest(tmp_path / "two", patterns) == same
    (tmp_path / "two" / "sub" / "config.json").rename(tmp_path / "two" / "sub" / "configs.json")
    assert folder_digest(tmp_path / "two", patterns) != same


def test_the_cache_folder_is_the_one_said(tmp_path):
    assert cache_folder() == tmp_path / "cache"


def test_a_folder_is_filled_whole_or_not_at_all(tmp_path):
    target = tmp_path / "kept" / "folder"

    def killed():
        with filling(target) as folder:
            (folder / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert list(target.parent.iterdir()) == []
    with filling(target) as slow:
        (slow / "from").write_text("slow")
        with filling(target) as fast:
            (fast / "from").write_text("fast")
    assert (target / "from").read_text() == "fast"
    assert list(target.parent.iterdir()) == [target]


def test_a_file_is_replaced_whole(tmp_path):
    file = tmp_path / "a" / "note.json"
    write_atomically(file, b"one")
    write_atomically(file, b"two")
    assert file.read_bytes() == b"two"
    assert list(file.parent.iterdir()) == [file]
