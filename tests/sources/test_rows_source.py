import hashlib
import json

import pytest

from compressor.errors import InputError
from compressor.sources.rows_source import peek_rows, resolve_rows
from compressor.sources.settings import RowFile


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSOR_CACHE", str(tmp_path / "cache"))


def test_a_local_file_is_found_from_the_base_and_its_digest_checked(tmp_path):
    file = tmp_path / "rows.txt"
    file.write_bytes(b"good\n")
    true = hashlib.sha256(b"good\n").hexdigest()
    assert (
        resolve_rows(RowFile(path="rows.txt", sha256=true), tmp_path)
        == file
        == peek_rows(RowFile(path="rows.txt"), tmp_path)
    )
    with pytest.raises(InputError) as raised:
        resolve_rows(RowFile(path="rows.txt", sha256="a" * 64), tmp_path)
    assert str(raised.value) == f"rows.txt has sha256 {true}, not {'a' * 64}; the file is not the one expected"


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(InputError, match=rf"^gone\.txt does not exist \(looked for {tmp_path}/gone\.txt\)$"):
        resolve_rows(RowFile(path="gone.txt"), tmp_path)
    assert peek_rows(RowFile(path="gone.txt"), tmp_path) is None
    (tmp_path / "folder").mkdir()
    for odd in ("x" * 5000, "~no-such-user/rows.txt", "a\0b"):
        with pytest.raises(InputError, match="does not exist"):
            resolve_rows(RowFile(path=odd), tmp_path)
    with pytest.raises(InputError, match=r"^folder is a folder \(.*\); name the file with the rows$"):
        resolve_rows(RowFile(path="folder"), tmp_path)


@pytest.mark.parametrize("path", ["hf:a/b", "hf:#train", "hf:a/b/c/d#train", "hf:a//b#train"])
def test_a_hub_path_must_say_name_and_split(tmp_path, path):
    with pytest.raises(InputError, match="must be hf:ORG/NAME#SPLIT or hf:ORG/NAME/CONFIG#SPLIT"):
        resolve_rows(RowFile(path=path), tmp_path)


def test_rows_that_datasets_can_load_are_kept_as_parquet(tmp_path, monkeypatch):
    folder = tmp_path / "someone" / "reviews"
    folder.mkdir(parents=True)
    rows = [{"text": "good", "label": 1}, {"text": "bad", "label": 0}]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    source = RowFile(path="hf:someone/reviews#train")
    assert peek_rows(source, tmp_path) is None
    path = resolve_rows(source, tmp_path)
    assert peek_rows(source, tmp_path) == path
    from pyarrow import parquet

    assert parquet.read_table(path).to_pylist() == rows


def test_hub_classes_come_with_their_names_and_minus_one_as_no_label():
    from datasets import ClassLabel, Dataset, Features, Value

    from compressor.sources.rows_source import _with_class_names

    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    assert _with_class_names(rows)["label"][:] == ["pos", "neg", None]
