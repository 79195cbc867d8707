import pytest

from compressor.recipe.document import MAX_BYTES, Fields, plain, read_document, read_file, resolve_scalar


def values(text: str):
    document = read_document(text, "r.yaml")
    assert not document.problems, document.problems
    return plain(document.root)


def complaints(text: str) -> list[str]:
    return [str(problem) for problem in read_document(text, "r.yaml").problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-5", 5e-5),
        ("5E+2", 500.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-7", -7),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 17),
        ("1_000", "1_000"),
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("2026-11-22", "2026-11-22"),
        ("12:30", "12:30"),
        ("1.2.3", "1.2.3"),
        ("0.5x", "0.5x"),
        ("=", "="),
    ],
)
def test_plain_scalars_are_those_of_yaml_1_2(text, value):
    assert resolve_scalar(text) == value
    assert type(resolve_scalar(text)) is type(value)


def test_quoted_scalars_are_texts():
    assert values("{a: '5', b: \"true\", c: 5}") == {"a": "5", "b": "true", "c": 5}


def test_infinity_and_nan_are_numbers():
    assert values("[.inf, -.Inf]") == [float("inf"), float("-inf")]
    assert values("[.nan]")[0] != values("[.nan]")[0]


def test_an_endless_number_stays_a_text():
    assert isinstance(resolve_scalar("9" * 5000), str)


def test_keys_are_texts_as_written():
    assert list(values("{1: a, on: b, 2.50: c}")) == ["1", "on", "2.50"]


def test_every_key_and_value_knows_its_place():
    root = read_document("a: 1\nb:\n  - x\n  - {c: é, d: 2}\n", "r.yaml").root
    assert isinstance(root, Fields)
    inner = root.entries["b"].node.nodes[1].entries["d"]
    assert str(inner.mark) == "r.yaml:4:12"
    assert str(inner.node.mark) == "r.yaml:4:15"


@pytest.mark.parametrize("text", ["[" * 50_000, "{a: " * 50_000, "- " * 50_000, "a: " + "[" * 64])
def test_deep_nesting_is_refused_without_a_crash(text):
    (message,) = complaints(text)
    assert "nested deeper than 64 levels" in message


def test_sixty_four_levels_are_allowed():
    assert values("[" * 64 + "]" * 64) is not None


def test_a_second_document_is_refused_where_it_starts():
    (message,) = complaints("a: 1\n---\nb: 2\n")
    assert message == "r.yaml:2:1 starts a second document; a recipe is one: remove this '---'"


def test_one_document_may_be_marked():
    assert values("---\na: 1\n...\n") == {"a": 1}


def test_tags_anchors_aliases_and_merge_keys_are_refused_each_at_its_place():
    found = complaints("a: &x {k: 1}\nb: *x\nc: !!python/name:os.system z\nd: {<<: {k: 1}}\n")
    assert [line.split()[0] for line in found] == ["r.yaml:1:4", "r.yaml:2:4", "r.yaml:3:4", "r.yaml:4:5"]
    assert "anchor" in found[0]
    assert "alias" in found[1]
    assert "tag" in found[2]
    assert "use extends" in found[3]


def test_a_duplicate_key_keeps_the_first_value_and_names_both_places():
    document = read_document("a: 1\nb: 2\na: 3\n", "r.yaml")
    assert plain(document.root) == {"a": 1, "b": 2}
    assert [str(problem) for problem in document.problems] == [
        "r.yaml:3:1 a is written twice (first in line 1, which is kept); remove one of them"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("expect:\n  accuracy: >= 84pp\n", "r.yaml:2:13 accuracy starts with '>' (got >= 84pp); quote it: '>= 84pp'"),
        ("a: {accuracy: >= 84pp, b: 1}", "r.yaml:1:15 accuracy starts with '>' (got >= 84pp); quote it: '>= 84pp'"),
        ("bins:\n  up: > 0.5\n", "r.yaml:2:7 up starts with '>' (got > 0.5); quote it: '> 0.5'"),
        ("- >= 84pp\n", "r.yaml:1:3 starts with '>' (got >= 84pp); quote it: '>= 84pp'"),
    ],
)
def test_an_unquoted_comparison_is_answered_with_quote_it(text, message):
    assert complaints(text) == [message]


@pytest.mark.parametrize("text", ["a: [", "a: {b: 1", "a: `x`", "a:\n\tb: 1", "a: 'x", "a: b: c", "%x", "é: \x07"])
def test_broken_yaml_is_one_problem_with_a_place(text):
    (message,) = complaints(text)
    assert message.startswith("r.yaml:")
    assert message.split()[0].count(":") == 2


def test_a_block_text_is_still_allowed():
    assert values("a: >\n  one\n  two\n") == {"a": "one two\n"}


def test_a_file_that_is_not_utf8_is_named_with_line_and_offset(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"name: x\nlabel: " + "评".encode("gb18030"))
    (problem,) = read_file(path, "r.yaml").problems
    assert str(problem) == "r.yaml:2:8 is not UTF-8 (byte 0xc6 at offset 15); save the file as UTF-8"


def test_a_byte_order_mark_is_dropped(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\n")
    assert plain(read_file(path).root) == {"name": "x"}


def test_a_huge_file_is_refused_unread(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    (problem,) = read_file(path).problems
    assert "larger than 1,000,000 bytes" in str(problem)
