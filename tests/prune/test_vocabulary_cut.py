import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizer_kinds import KINDS, make_texts, write_kind

from compressor.data.encode import Encoder, open_encoder
from compressor.data.rows import DataSets, Rows
from compressor.data.settings import Task
from compressor.distill.distiller import Distiller
from compressor.errors import GateError, InputError, StageError
from compressor.export.exporter import Exporter
from compressor.model.encoders import load_model, model_logits
from compressor.model.footprint import parameters
from compressor.model.manifest import read_manifest
from compressor.prune import vocabulary as vocabulary_module
from compressor.prune.pruner import Pruner
from compressor.prune.scoring import row_inputs
from compressor.quantize.quantizer import Quantizer
from compressor.runtime.predictor import load
from compressor.stage import Decision, Outcome

torch.set_num_threads(1)
UNSEEN = {"vocabulary": "unseen"}
BOTH = {"heads": "taylor", "ffn": "taylor", **UNSEEN}


def labelled(texts: tuple[str, ...]) -> Rows:
    return Rows(texts, tuple(place % 2 for place in range(len(texts))))


@pytest.fixture(scope="module")
def rows() -> DataSets:
    """Few rows, so that many tokens are unseen; those of select are others."""
    texts = make_texts(90, seed=5)
    return DataSets(
        task=Task(), labels=("bad", "good"), text_columns=("text",), max_tokens=32, train=labelled(texts[:20]),
        select=labelled(texts[40:80]), test=labelled(texts[80:]), unlabelled=Rows(texts[20:40], (None,) * 20),
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kind(tmp_path_factory.mktemp("whole") / "model", "wordpiece")


@pytest.fixture(scope="module")
def small(whole: Path, rows: DataSets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Pruner(whole, data=rows, remove=UNSEEN).fit(tmp_path_factory.mktemp("small") / "model")


def answers(folder: Path, texts: tuple[str, ...]) -> torch.Tensor:
    encoder = open_encoder(folder, 32)
    return model_logits(load_model(folder), row_inputs(encoder.encode(texts), range(len(texts)), encoder.pad_id))


def spelled(encoder: Encoder, text: str) -> list[str]:
    return [str(encoder.tokenizer.id_to_token(int(number))) for number in encoder.encode([text]).row(0)]


def outcome(*, passed: bool) -> Outcome:
    return Outcome("pass" if passed else "fail", passed, "accuracy fell by 9pp", {"accuracy": (0.09, 0.05, 0.13)})


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_were_counted_are_answered_as_before_by_a_smaller_file(tmp_path: Path, rows: DataSets, kind: str):
    source, said = write_kind(tmp_path / "whole", kind), list[Decision]()
    out = Pruner(source, data=rows, remove=UNSEEN, decide=said.append).fit(tmp_path / "small")
    counted = rows.train.texts + rows.unlabelled.texts
    assert float((answers(out, counted) - answers(source, counted)).abs().max()) < 1e-5
    assert bool(answers(out, rows.select.texts).isfinite().all())
    ((kept, removed, of), cost) = said[0].chosen.values(), said[0].cost
    assert [decision.kind for decision in said] == ["vocabulary"]
    assert (kept, of) == (read_manifest(out).shapes.vocabulary, read_manifest(source).shapes.vocabulary)
    assert removed == of - kept > 30
    assert cost["parameters"] == parameters(load_model(source)) - parameters(load_model(out)) == removed * 16
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (source, out)]
    assert abs(sizes[0] - sizes[1] - cost["bytes"]) <= 8
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["small", "whole"]
    json.dumps([vars(decision) for decision in said], allow_nan=False)


def test_the_padding_that_positions_are_counted_from_keeps_its_id(tmp_path: Path, rows: DataSets):
    source = write_kind(tmp_path / "whole", "unigram")
    content = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    encoder, pieces = open_encoder(source, 64), content["model"]["vocab"]
    seen = {token for text in rows.train.texts + rows.unlabelled.texts for token in spelled(encoder, text)}
    place = next(place for place, (piece, _) in enumerate(pieces) if len(piece) > 1 and place > 4 and piece not in seen)
    pieces[0], pieces[place] = pieces[place], pieces[0]
    next(token for token in content["added_tokens"] if token["content"] == "<s>")["id"] = place
    content["post_processor"]["special_tokens"]["<s>"]["ids"] = [place]
    (source / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (source / "config.json").write_text(json.dumps({**config, "bos_token_id": place}), encoding="utf-8")
    out = Pruner(source, data=rows, remove=UNSEEN).fit(tmp_path / "small")
    assert open_encoder(out, 32).pad_id == 1
    assert load_model(out).config.pad_token_id == 1
    assert float((answers(out, rows.train.texts) - answers(source, rows.train.texts)).abs().max()) < 1e-5


def test_figures_on_held_out_rows_are_those_of_a_loop_over_them(tmp_path: Path, whole: Path, rows: DataSets):
    said: list[Decision] = []
    strange = rows.select.texts[0] + " ☃☃ ☃"
    rows = replace(rows, select=labelled((strange, *rows.select.texts[1:])))
    out = Pruner(whole, data=rows, remove=UNSEEN, decide=said.append).fit(tmp_path / "small")
    before, after = open_encoder(whole, 32), open_encoder(out, 32)
    kept = set(after.tokenizer.get_vocab())
    tokens = unknown = stay = changed = 0
    after_tokens = after_unknown = 0
    for text in rows.select.texts:
        old, new = spelled(before, text), spelled(after, text)
        own, own_after = (row[1:-1] for row in (old, new))
        tokens, after_tokens = tokens + len(own), after_tokens + len(own_after)
        unknown, after_unknown = unknown + own.count("[UNK]"), after_unknown + own_after.count("[UNK]")
        stay += sum(token in kept for token in own)
        changed += old != new
    found, count = said[0].cost["held_out"], len(rows.select)
    assert unknown == 2
    assert 0 < changed < count
    assert found["rows"] == count
    assert found["coverage"] == pytest.approx(stay / tokens)
    assert found["retokenised"] == pytest.approx(changed / count)
    assert found["unknown"] == pytest.approx((unknown / tokens, after_unknown / after_tokens))
    assert found["tokens"] == pytest.approx((tokens / count + 2, after_tokens / count + 2))
    assert (
        f"on {count} held-out rows {stay / tokens:.2%} of the tokens stay, {changed / count:.1%} of the rows are read "
        f"in other tokens, {after_unknown / after_tokens:.2%} of the tokens are unknown ({unknown / tokens:.2%} "
        f"before) and a row has {after_tokens / count + 2:.1f} ({tokens / count + 2:.1f} before)"
    ) in said[0].because


def test_too_few_rows_are_called_so_and_many_are_not(tmp_path: Path, whole: Path, rows: DataSets):
    few, many = list[Decision](), list[Decision]()
    Pruner(whole, data=rows, remove=UNSEEN, decide=few.append).fit(tmp_path / "few")
    more = replace(rows, unlabelled=Rows(rows.select.texts, (None,) * len(rows.select)))
    Pruner(whole, data=more, remove=UNSEEN, decide=many.append).fit(tmp_path / "many")
    assert few[0].because.endswith("too few to show the words of new ones, add some to data.unlabelled")
    assert "100.00% of the tokens stay, 0.0% of the rows are read in other tokens" in many[0].because
    assert "too few" not in many[0].because


def test_tokens_of_select_and_test_do_not_count_and_those_past_the_limit_do(
    tmp_path: Path, whole: Path, rows: DataSets
):
    encoder = open_encoder(whole, 64)
    every = encoder.tokenizer.get_vocab()
    counted = {token for text in rows.train.texts + rows.unlabelled.texts for token in spelled(encoder, text)}
    held = {token for text in rows.select.texts + rows.test.texts for token in spelled(encoder, text)}
    new = sorted(token for token in held - counted if len(token.removeprefix("##")) > 1)
    out = Pruner(whole, data=rows, remove=UNSEEN).fit(tmp_path / "one")
    assert new
    assert not set(new) & open_encoder(out, 32).tokenizer.get_vocab().keys()
    word = max((token for token in every if not token.startswith(("##", "["))), key=len)
    long = Rows(("ba " * 40 + word,), (None,))
    (folder,) = {Pruner(whole, data=replace(rows, unlabelled=long), remove=UNSEEN).fit(tmp_path / "two")}
    assert word in open_encoder(folder, 32).tokenizer.get_vocab()


def test_the_tokens_count_towards_a_target_of_parameters_and_of_bytes(tmp_path: Path, whole: Path, rows: DataSets):
    full = parameters(load_model(whole))
    for until in ({"parameters": "0.55x"}, {"bytes": "0.55x"}):
        said: list[Decision] = []
        place = tmp_path / next(iter(until))
        pruner = Pruner(whole, data=rows, remove=BOTH, until=until, steps=2, decide=said.append)
        out = pruner.fit(place / "both")
        share = parameters(load_model(out)) / full
        assert 0.5 < share <= 0.55
        size = [(folder / "model.safetensors").stat().st_size for folder in (whole, out)]
        assert "bytes" not in until or 0.5 < size[1] / size[0] <= 0.55
        pruned = said[-1]
        assert [each.kind for each in said] == ["cut", "cut", "vocabulary", "pruned"]
        assert "missed" not in pruned.because
        left, of = (int(word) for word in pruned.because.split() if word.isdigit())
        assert left / of <= 0.55
        assert pruned.cost["parameters"] == parameters(load_model(out))
        if "parameters" in until:
            assert (left, of) == (parameters(load_model(out)), full)


def test_a_target_that_the_tokens_reach_alone_is_refused(tmp_path: Path, whole: Path, rows: DataSets):
    pruner = Pruner(whole, data=rows, remove=BOTH, until={"parameters": "0.95x"})
    with pytest.raises(InputError, match=r"0.95x is reached by remove.vocabulary alone: \d+ of \d+ remain without"):
        pruner.fit(tmp_path / "small")
    smoke = Pruner(whole, data=rows, remove=BOTH, until={"parameters": "0.95x"}, smoke=True)
    assert smoke.fit(tmp_path / "smoke").is_dir()


def test_a_gate_that_refuses_the_smaller_vocabulary_keeps_the_cuts_and_all_tokens(
    tmp_path: Path, whole: Path, rows: DataSets
):
    said, judged = list[Decision](), list[int]()

    def accept(folder: Path) -> Outcome:
        judged.append(read_manifest(folder).shapes.vocabulary)
        return outcome(passed=len(judged) < 2)

    pruner = Pruner(whole, data=rows, remove=BOTH, until={"parameters": "0.55x"}, decide=said.append)
    out = pruner.fit(tmp_path / "small", accept=accept)
    full = read_manifest(whole).shapes.vocabulary
    back, pruned = said[-2:]
    assert judged[0] == full > judged[1]
    assert (back.kind, back.chosen, back.candidates) == (
        "backtrack", {"vocabulary": full}, {"vocabulary": judged[1]},
    )  # fmt: skip
    assert back.because == "the model without the unseen tokens broke the gate: accuracy fell by 9pp"
    assert read_manifest(out).shapes.vocabulary == full
    assert (out / "tokenizer.json").read_bytes() == (whole / "tokenizer.json").read_bytes()
    assert pruned.because.startswith(f"parameters {parameters(load_model(out))} of ")
    assert pruned.because.endswith("; until.parameters 0.55x, which counted on the tokens, is missed")
    with pytest.raises(GateError, match=r"refuses the model without unseen tokens \(accuracy fell by 9pp\); nothing"):
        Pruner(whole, data=rows, remove=UNSEEN).fit(tmp_path / "alone", accept=lambda _folder: outcome(passed=False))


def test_a_second_cut_by_the_same_rows_finds_nothing(tmp_path: Path, small: Path, rows: DataSets):
    with pytest.raises(StageError, match=r"changed no parameter: each of \d+ tokens stands in train or the pool"):
        Pruner(small, data=rows, remove=UNSEEN).fit(tmp_path / "again")
    said: list[Decision] = []
    Pruner(small, data=rows, remove=BOTH, until={"macs": "0.5x"}, decide=said.append).fit(tmp_path / "both")
    assert next(each.chosen["removed"] for each in said if each.kind == "vocabulary") == 0


def test_two_runs_and_one_that_was_interrupted_leave_the_same_files(
    tmp_path: Path, whole: Path, rows: DataSets, monkeypatch: pytest.MonkeyPatch
):
    settings = {"data": rows, "remove": BOTH, "until": {"macs": "0.5x"}, "recover": {"train": {"steps": 3}}}
    first, again = list[Decision](), list[Decision]()
    one = Pruner(whole, **settings, decide=first.append).fit(tmp_path / "one")

    def stop(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(vocabulary_module, "cut_words", stop)
        with pytest.raises(KeyboardInterrupt):
            Pruner(whole, **settings).fit(tmp_path / "two")
    two = Pruner(whole, **settings, decide=again.append).fit(tmp_path / "two")
    assert [path.name for path in sorted(one.iterdir())] == [path.name for path in sorted(two.iterdir())]
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name
    assert [vars(each) for each in again] == [vars(each) for each in first if each.kind != "teacher precision"]


def test_a_later_recovery_learns_from_the_teacher_with_all_tokens(
    tmp_path: Path, whole: Path, small: Path, rows: DataSets
):
    recover = {"train": {"steps": 3, "learning_rate": 1e-3}, "match": [{"of": "logits"}, {"of": "hidden"}]}
    settings = {"data": rows, "remove": {"ffn": "taylor"}, "until": {"macs": "0.8x"}}
    out = Pruner(small, **settings, recover=recover, teacher=whole).fit(tmp_path / "recovered")
    plain = Pruner(small, **settings).fit(tmp_path / "plain")
    assert (out / "tokenizer.json").read_bytes() == (small / "tokenizer.json").read_bytes()
    assert (out / "model.safetensors").read_bytes() != (plain / "model.safetensors").read_bytes()


def test_a_student_with_fewer_tokens_learns_from_the_teacher_with_all(
    tmp_path: Path, whole: Path, small: Path, rows: DataSets
):
    match = [{"of": "logits"}, {"of": "hidden"}]
    made = Distiller(whole, small, data=rows, match=match, train={"steps": 3}).fit(tmp_path / "student")
    assert read_manifest(made).shapes.vocabulary == read_manifest(small).shapes.vocabulary


def test_what_is_made_of_the_smaller_model_answers_as_it_does(tmp_path: Path, small: Path, rows: DataSets):
    texts = rows.select.texts
    shipped = Exporter(small, data=rows).export(tmp_path / "onnx")
    found = load(shipped).logits(list(texts))
    assert np.abs(found - answers(small, texts).numpy()).max() < 1e-4
    quantized = Quantizer(small, data=rows, try_=["dynamic"]).fit(tmp_path / "int8")
    assert np.isfinite(load(quantized).logits(list(texts))).all()


def test_without_rows_to_count_nothing_is_removed(tmp_path: Path, whole: Path, rows: DataSets):
    bare = replace(rows, train=Rows((), ()), unlabelled=Rows((), ()))
    with pytest.raises(InputError, match="keeps the tokens of train and of unlabelled rows; the data has neither"):
        Pruner(whole, data=bare, remove=UNSEEN).fit(tmp_path / "small")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"remove": UNSEEN, "until": {"macs": "0.5x"}}, "until.macs cannot be aimed at by remove.vocabulary alone"),
        ({"remove": UNSEEN, "steps": 2}, "has steps, which is for cuts of heads"),
        ({"remove": UNSEEN, "engine": "torch"}, "engine says where until.latency is measured"),
        ({"remove": {"heads": "taylor"}}, "until says how much of heads shall go"),
    ],
)
def test_settings_of_cuts_beside_tokens_alone_are_refused(whole: Path, rows: DataSets, settings, text: str):
    with pytest.raises(InputError) as error:
        Pruner(whole, data=rows, **settings)
    assert text in str(error.value)


@pytest.mark.registry
def test_real_minilm_on_movie_rows_answers_as_before_on_rows_whose_tokens_stay(tmp_path: Path, minilm: Path):
    from tiny import MOVIES

    from compressor.data.rows import open_data
    from compressor.model.encoders import copy_tokenizer

    bins = {"negative": "< -0.5", "positive": "> 0.5"}
    data = open_data({"train": MOVIES, "label": {"column": "rating", "bins": bins}, "max_tokens": 64})
    source, said = tmp_path / "whole", list[Decision]()
    torch.manual_seed(3)
    load_model(minilm, labels=data.labels).save_pretrained(source)
    copy_tokenizer(minilm, source)
    out = Pruner(source, data=data, remove=UNSEEN, decide=said.append).fit(tmp_path / "small")
    before, after = open_encoder(source, 64), open_encoder(out, 64)
    kept = open_encoder(out, 64).tokenizer.get_vocab().keys()
    same = tuple(text for text in data.select.texts if set(spelled(before, text)) <= kept)[:64]
    assert len(same) == 64
    assert [spelled(after, text) for text in same] == [spelled(before, text) for text in same]
    assert float((answers(out, same) - answers(source, same)).abs().max()) < 1e-5
    chosen, found = said[0].chosen, said[0].cost["held_out"]
    assert chosen["of"] == 30522
    assert 10_000 < chosen["kept"] < 16_000
    assert found["coverage"] > 0.95
    assert found["unknown"][1] == found["unknown"][0]
