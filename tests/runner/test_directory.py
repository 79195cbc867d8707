"""Stage folders are whole or absent, and found by their key."""

import json

import pytest

from compressor.model.digest import model_digest
from compressor.runner.directory import RunDirectory, read_json, read_lines, write_json
from compressor.runner.keys import difference, key_parts
from compressor.stages.export import Export
from compressor.stages.prune import Prune


def finished(directory: RunDirectory, stage_id: str, key: str) -> None:
    (directory.stage(stage_id) / "model").mkdir(parents=True)
    write_json(directory.stage(stage_id) / "stage.json", {"id": stage_id, "key": key})


def test_a_stage_is_found_by_its_key_and_renamed(tmp_path):
    directory = RunDirectory(tmp_path)
    finished(directory, "slim", "k1")
    assert directory.find_key("k1", "small") == "slim"
    directory.adopt("slim", "small", keep=False)
    assert not directory.stage("slim").exists()
    assert directory.record("small") == {"id": "small", "key": "k1"}


def test_two_stages_with_one_key_both_stand(tmp_path):
    directory = RunDirectory(tmp_path)
    finished(directory, "first", "k1")
    directory.adopt("first", "second", keep=True)
    assert directory.find_key("k1", "first") == "first"
    assert directory.find_key("k1", "second") == "second"
    assert directory.find_key("k2", "second") is None


def test_a_killed_attempt_is_gone_on_with_where_the_stage_trains_and_begun_again_where_not(tmp_path):
    directory = RunDirectory(tmp_path)
    for stage, stays in ((Prune(id="slim"), True), (Export(id="ship"), False)):
        first = directory.begin(stage, "key", {"id": stage.id})
        (first.folder / "checkpoint").mkdir()
        (first.folder / "model").mkdir()
        again = directory.begin(stage, "key", {"id": stage.id})
        assert again.number == 2
        assert (again.folder / "checkpoint").exists() == stays
        assert not (again.folder / "model").exists()
        other = directory.begin(stage, "another key", {"id": stage.id})
        assert other.number == 1
        assert not (other.folder / "checkpoint").exists()


def test_a_commit_removes_what_only_an_interrupted_try_needs(tmp_path):
    directory = RunDirectory(tmp_path)
    attempt = directory.begin(Prune(id="slim"), "key", {})
    for name in ("model", "checkpoint", "cache", "random", "cut-1", "cut-2"):
        (attempt.folder / name).mkdir()
    directory.commit(Prune(id="slim"), attempt, {})
    assert sorted(path.name for path in directory.stage("slim").iterdir()) == ["model", "stage.json"]


def test_a_commit_without_what_the_stage_promised_is_refused(tmp_path):
    directory = RunDirectory(tmp_path)
    stage = Export(id="ship")
    attempt = directory.begin(stage, "key", {})
    with pytest.raises(AssertionError, match="promised model"):
        directory.commit(stage, attempt, {})
    assert not directory.stage("ship").exists()


def test_torn_files_are_read_as_absent(tmp_path):
    (tmp_path / "a.json").write_text('{"key": ')
    assert read_json(tmp_path / "a.json") is None
    (tmp_path / "steps.jsonl").write_text(json.dumps({"step": 1}) + "\n" + '{"step": ')
    assert read_lines(tmp_path / "steps.jsonl") == [{"step": 1}]


def parts_of(stage, **changes):
    given = {
        "inputs": {"model": "a" * 64},
        "rows": {"train": "b" * 64},
        "gate_against": {},
        "seed": 17,
        "threads": 2,
        "device": "cpu",
        "smoke": False,
    }
    return key_parts(stage, **{**given, **changes})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"inputs": {"model": "c" * 64}}, "inputs.model changed"),
        ({"rows": {"train": "c" * 64}}, "rows.train changed"),
        ({"seed": 18}, "seed 17 -> 18"),
        ({"threads": 4}, "threads 2 -> 4"),
        ({"device": "gpu"}, 'device "cpu" -> "gpu"'),
        ({"gate_against": {"student": "d" * 64}}, 'gate_against.student null -> "' + "d" * 64 + '"'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_all_that_decides_a_stage_is_in_its_key_and_named_where_it_differs(changed, words, monkeypatch):
    from compressor.runner import keys

    monkeypatch.setattr(keys, "native_bf16", lambda _device: False)
    assert difference(parts_of(Prune(id="slim")), parts_of(Prune(id="slim"), **changed)) == words


def test_neither_the_id_nor_from_is_in_the_key_but_every_setting_is():
    assert parts_of(Prune(id="slim")) == parts_of(Prune.model_validate({"id": "small", "from": "student"}))
    assert difference(parts_of(Prune(id="slim")), parts_of(Prune(id="slim", steps=4))) == "settings.steps 1 -> 4"
    gated = Prune.model_validate({"id": "slim", "gate": {"accuracy": ">= 80pp"}})
    assert difference(parts_of(Prune(id="slim")), parts_of(gated)).startswith("gate")


def test_a_models_digest_follows_what_decides_its_answers_and_not_the_verdict(tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"graph")
    seen = {model_digest(tmp_path)}
    for count, (name, said) in enumerate(
        [
            ("model.onnx.data", {}),
            ("1_Pooling/config.json", {"pooling_mode_cls_token": True}),
            ("compressor.json", {"labels": ["bad", "good"]}),
            ("compressor.json", {"labels": ["good", "bad"]}),
        ]
    ):
        write_json(tmp_path / name, said)
        seen.add(model_digest(tmp_path))
        assert len(seen) == count + 2
    write_json(tmp_path / "compressor.json", {"labels": ["good", "bad"], "verdict": "pass"})
    assert model_digest(tmp_path) in seen
