import json
from typing import get_args

import pytest

from compressor.data.columns import check_columns
from compressor.data.readers import READERS, head_names, read_columns
from compressor.data.settings import Data
from compressor.errors import InputError
from compressor.sources.settings import RowFile, RowFormat


def columns(tmp_path, content, name, wanted=("text", "label"), **settings):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_columns(path, RowFile(path=name, **settings), list(wanted))


def test_readers_and_settings_name_the_same_formats():
    assert set(READERS) == set(get_args(RowFormat))


def test_csv_fields_may_hold_commas_quotes_and_line_ends(tmp_path):
    content = 'label,text\r\npos,"one, ""two""\nthree"\r\nneg,four\u2028five\r\n'
    read = columns(tmp_path, content, "r.csv")
    assert read.values == [['one, "two"\nthree', "four\u2028five"], ["pos", "neg"]]
    assert read.places == [2, 4]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    assert columns(tmp_path, b"\xef\xbb\xbftext,label\na,b\n", "r.csv").values == [["a"], ["b"]]
    assert columns(tmp_path, b"\xef\xbb\xbftext\tlabel\r\na\tb", "r.tsv").values == [["a"], ["b"]]


def test_a_tsv_field_may_hold_quotes_and_foreign_line_separators(tmp_path):
    read = columns(
        tmp_path,
        "1\t\"half\tgo\u2028od \x85\r\n2\t''x\tbad",
        "r.txt",
        ("said", 2),
        format="tsv",
        columns=["id", "said", "t"],
    )
    assert read.values == [['"half', "''x"], ["go\u2028od \x85", "bad"]]


def test_columns_by_number_mean_that_there_is_no_header(tmp_path):
    assert columns(tmp_path, "a,0\nb,1\n", "r.csv", (0, 1)).values == [["a", "b"], ["0", "1"]]


def test_a_txt_row_is_a_line_whatever_its_end(tmp_path):
    assert columns(tmp_path, "one\r\n two \n\nthree", "r.txt", ("text",)).values == [["one", " two ", "", "three"]]


def test_jsonl_keys_may_be_missing_or_null(tmp_path):
    read = columns(
        tmp_path, '{"text": "a", "label": 1}\n\n{"text": "b\\u2028c"}\r\n{"label": null, "text": "d"}', "r.jsonl"
    )
    assert read.values == [["a", None, "b\u2028c", "d"], [1, None, None, None]]
    assert read.places == [1, 2, 3, 4]


def test_parquet_gives_the_columns_wanted(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "r.parquet"
    parquet.write_table(pyarrow.table({"id": [1, 2], "text": ["a", None], "label": [0.0, None]}), path)
    assert read_columns(path, RowFile(path="r.parquet"), ["text", "label"]).values == [["a", None], [0.0, None]]
    assert head_names(path, RowFile(path="r.parquet"), []) == ["id", "text", "label"]


def test_a_field_longer_than_the_csv_module_allows_is_read(tmp_path):
    assert len(columns(tmp_path, "text,label\n" + "x" * 200_000 + ",a\n", "r.csv").values[0][0]) == 200_000


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "r.csv", r"^r\.csv is empty: it holds no rows$"),
        ("text,label\n", "r.csv", r"^r\.csv is empty: it holds no rows$"),
        ("", "r.jsonl", r"^r\.jsonl is empty: it holds no rows$"),
        (b"\xef\xbb\xbf", "r.tsv", r"^r\.tsv is empty: it holds no rows$"),
        ("review,stars\na,1\n", "r.csv", r"^r\.csv: no column 'text'; its columns are review, stars$"),
        ('{"review": "a"}\n', "r.jsonl", r"^r\.jsonl: no column 'text'; its columns are review$"),
        ("text,label,text\na,1,b\n", "r.csv", r"^r\.csv: column 'text' stands 2 times; rename one in the header$"),
        ("text,label\na,b,c\n", "r.csv", r"^r\.csv: line 2 has 3 fields where 2 are expected; look for an unquoted"),
        ("text\tlabel\na\n", "r.tsv", r"^r\.tsv: line 2 has 1 fields where 2 are expected"),
        ('text,label\n"a,b\n', "r.csv", r"^r\.csv: line 2 is not csv: unexpected end of data"),
        ('{"text": "a"}\n{"text": \n', "r.jsonl", r"^r\.jsonl: line 2 is not JSON: .*; jsonl holds one object a line$"),
        ("[" * 200_000, "r.jsonl", r"^r\.jsonl: line 1 is not JSON"),
        ('["a"]\n', "r.jsonl", r"^r\.jsonl: line 1 is not a JSON object \(got '\[\"a\"\]'\)"),
        ("a\n", "r.txt", r"^r\.txt: a txt file has one column, a text a line \(wanted text, label\)"),
        (
            "a\n",
            "r.docx",
            r"^r\.docx: the ending '\.docx' does not say how the rows are written; add format: with one of csv",
        ),
        (b"PAR1xx", "r.parquet", r"^r\.parquet is not parquet: "),
        (b"text,label\ncaf\xe9,1\n", "r.csv", r"^r\.csv: line 2, byte 14 \(0xe9\) is not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, name, message):
    with pytest.raises(InputError, match=message):
        columns(tmp_path, content, name)


def test_the_head_of_a_long_file_tells_its_columns(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps({"text": "é" * 500, "n": n}) + "\n" for n in range(2000)))
    assert head_names(path, RowFile(path="r.jsonl"), ["text"]) == ["text", "n"]


MEGABYTE = "x" * (1 << 20)


@pytest.mark.parametrize(
    ("name", "content", "settings"),
    [
        ("r.jsonl", json.dumps({"text": MEGABYTE, "label": "a"}) + "\n" + json.dumps({"text": "b", "label": "b"}), {}),
        ("r.jsonl", (json.dumps({"text": "x" * 1000}) + "\n") * 1100 + json.dumps({"text": "b", "label": "b"}), {}),
        ("r.tsv", MEGABYTE + "\ta\nb\tb\n", {"columns": ["text", "label"]}),
        ("r.csv", "\n" * (1 << 20) + "text,label\nb,b\n", {}),
    ],
)
def test_what_the_first_megabyte_does_not_show_is_left_to_the_reading(tmp_path, name, content, settings):
    assert columns(tmp_path, content, name, **settings).values[1][-1] == "b"
    given = {"train": {"path": name, **settings}, "text": "text", "label": "label"}
    assert check_columns(Data.model_validate(given), tmp_path) == []
