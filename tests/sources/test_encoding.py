import pytest

from compressor.errors import InputError
from compressor.sources.encoding import likely_encoding, lines_of, read_text

CHINESE = "这家酒店的服务非常好，房间也很干净。\n早餐一般，但是位置方便。\n"


def test_utf8_is_read_without_its_byte_order_mark(tmp_path):
    file = tmp_path / "rows.txt"
    file.write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9\n")
    assert read_text(file, None) == "café\n"
    assert read_text(file, "utf-8") == "café\n"


def test_gb18030_rows_are_named_in_the_error_and_read_once_it_is_said(tmp_path):
    file = tmp_path / "reviews.txt"
    file.write_bytes(CHINESE.encode("gb18030"))
    with pytest.raises(InputError) as raised:
        read_text(file, None)
    assert str(raised.value) == (
        f"{file}: line 1, byte 0 (0xd5) is not UTF-8; it reads as gb18030; write encoding: gb18030"
    )
    assert read_text(file, "gb18030") == CHINESE


def test_the_error_names_the_line_and_byte_of_what_is_not_utf8(tmp_path):
    file = tmp_path / "reviews.txt"
    file.write_bytes(b"good\nfine\ncaf\xe9 au lait\n")
    with pytest.raises(InputError, match=r"reviews\.txt: line 3, byte 13 \(0xe9\) is not UTF-8; write `encoding:`"):
        read_text(file, None)


@pytest.mark.parametrize(
    "text", ["été à la plage, déjà vu, garçon", "Größe, Straße, über Österreich", "señor, mañana, niño"]
)
def test_accented_latin1_text_is_not_taken_for_chinese(text):
    assert likely_encoding(text.encode("latin-1")) is None


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_marked_wide_encodings_are_named(tmp_path, encoding):
    file = tmp_path / "rows.txt"
    file.write_bytes("good ü\n".encode(encoding))
    with pytest.raises(InputError, match=f"it reads as {encoding}; write encoding: {encoding}"):
        read_text(file, None)
    assert read_text(file, encoding) == "good ü\n"


@pytest.mark.parametrize("encoding", ["utf8000", "base64"])
def test_an_unknown_encoding_is_refused(tmp_path, encoding):
    file = tmp_path / "rows.txt"
    file.write_bytes(b"good\n")
    with pytest.raises(InputError, match=f"encoding '{encoding}' is not known; write one such as utf-8 or gb18030"):
        read_text(file, encoding)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_unmarked_wide_text_is_not_read_as_if_it_were_utf8(tmp_path, encoding):
    file = tmp_path / "rows.txt"
    file.write_bytes("good\nfine\n".encode(encoding))
    with pytest.raises(InputError) as raised:
        read_text(file, None)
    assert str(raised.value) == (
        f"{file}: line 1 holds a NUL byte, so it is no UTF-8 text; it reads as {encoding}; write encoding: {encoding}"
    )


def test_lines_end_at_line_feeds_alone():
    text = "one\r\ntwo\u2028still two\x85\x0bstill\r two\n\nfour"
    assert list(lines_of(text)) == ["one", "two\u2028still two\x85\x0bstill\r two", "", "four"]
    assert list(lines_of("")) == []
    assert list(lines_of("a\n")) == ["a"]
