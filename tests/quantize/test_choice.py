import shutil
from dataclasses import replace
from typing import get_args

import pytest
from model_folders import TEXTS, data_of, write_classifier

from compressor.export.exporter import Exporter
from compressor.quantize import choice
from compressor.quantize.choice import Candidate, Times, choose, time_side_by_side, times_once
from compressor.quantize.quantizer import Quantizer
from compressor.quantize.settings import Choice
from compressor.quantize.trials import Trial

ROUNDS = 8


def candidate(scheme, size, share, refused=""):
    trial = Trial(share, 0.0, 0.0, 0, None, 10, None if not refused else False, refused)
    return Candidate(scheme, trial, bytes=size, refused=refused)


def times(**milliseconds):
    """Times whose rounds go slower and faster together, with one value a round."""
    rounds = {
        name: tuple((int(1e6 * (base + wobble * (number % 2)) * (1 + 0.3 * (number % 3))),) for number in range(ROUNDS))
        for name, (base, wobble) in milliseconds.items()
    }
    return Times(rounds)


def here(made, folders):
    """Times as if they were taken now, on this machine, of these folders."""
    return replace(made, files=choice.digests(folders), machine=choice.machine_id(), threads=choice.usable_threads())


SMALL, GOOD, BEST = candidate("dynamic", 10, 0.9), candidate("static", 20, 0.95), candidate("mixed", 30, 0.99, "lost")


def test_the_choices_of_the_recipe_are_those_that_are_made():
    assert set(get_args(Choice)) == {"fastest", "smallest", "most_accurate"}


def test_the_smallest_or_the_most_accurate_of_those_that_passed_is_kept():
    assert choose([SMALL, GOOD, BEST], "smallest") == (SMALL, "smallest of 2")
    assert choose([SMALL, GOOD, BEST], "most_accurate") == (GOOD, "most accurate of 2")
    assert choose([BEST], "smallest") == (None, "no scheme passed")
    assert choose([GOOD, BEST], "fastest") == (GOOD, "the only one of 2 that passed")
    assert choose([GOOD], "fastest") == (GOOD, "the only scheme to try")
    twin = candidate("qat", 20, 0.95)
    assert choose([twin, GOOD], "most_accurate")[0] is twin


def test_the_fastest_is_kept_where_it_is_shown_to_be_faster():
    kept, because = choose([SMALL, GOOD], "fastest", times(dynamic=(2.0, 0.01), static=(3.0, 0.01)))
    assert kept is SMALL
    assert because.startswith("fastest of 2, 2.")


def test_of_those_that_are_not_shown_to_be_slower_the_most_accurate_is_kept():
    kept, because = choose([SMALL, GOOD], "fastest", times(dynamic=(2.0, 0.3), static=(2.2, 0.0)))
    assert kept is GOOD
    assert because.startswith("most accurate of 2 that are as fast as the fastest, ")


def test_a_decision_tells_all_of_a_candidate_on_one_level():
    told = GOOD.told()
    assert (told["scheme"], told["bytes"], told["agreement"], told["because"]) == ("static", 20, 0.95, "")
    assert "trial" not in told
    failed = Candidate("qat", None, refused="no rows").told()
    assert (failed["passed"], failed["because"]) == (False, "no rows")


@pytest.fixture(scope="module")
def fp32(tmp_path_factory, tiny_classifier):
    source = write_classifier(tmp_path_factory.mktemp("source") / "model", tiny_classifier)
    return Exporter(source, data=data_of(TEXTS)).export(tmp_path_factory.mktemp("fp32") / "final")


def test_models_are_timed_in_processes_of_their_own(fp32):
    found = time_side_by_side({"one": fp32, "two": fp32}, TEXTS, rounds=2)
    assert [len(found.rounds[name]) for name in ("one", "two")] == [2, 2]
    assert found.p50_ms("one") > 0
    assert found.files["one"] == found.files["two"]
    assert found.machine


def test_times_are_written_before_they_are_used_and_read_again_for_the_same_files(fp32, tmp_path, monkeypatch):
    taken = []

    def timed(folders, *_arguments, **_named):
        taken.append(list(folders))
        made = times(**dict.fromkeys(folders, (2.0, 0.0)))
        return replace(
            made, files=choice.digests(folders), machine=choice.machine_id(), threads=choice.usable_threads()
        )

    monkeypatch.setattr(choice, "time_side_by_side", timed)
    path = tmp_path / "choice.json"

    def ask(folders):
        return times_once(path, folders, TEXTS, seed=1, progress=lambda *_: None)

    first, again = ask({"a": fp32, "b": fp32})
    assert path.is_file()
    assert not again
    assert ask({"a": fp32, "b": fp32}) == (first, True)
    assert not ask({"a": fp32})[1]  # other candidates
    path.write_text(path.read_text().replace(choice.machine_id(), "another"))
    assert not ask({"a": fp32})[1]
    path.write_text(path.read_text()[:50])
    assert not ask({"a": fp32})[1]
    assert len(taken) == 4


def test_fastest_of_several_schemes_is_timed_once_and_replayed_after_an_interruption(fp32, tmp_path, monkeypatch):
    told = []

    def timed(folders, *_arguments, **_named):
        made = times(dynamic=(3.0, 0.0), weight_only=(2.0, 0.0))
        return replace(
            made, files=choice.digests(folders), machine=choice.machine_id(), threads=choice.usable_threads()
        )

    monkeypatch.setattr(choice, "time_side_by_side", timed)
    made = Quantizer(fp32, data=data_of(TEXTS), try_=["dynamic", "weight_only"], choose="fastest", decide=told.append)
    made.fit(tmp_path / "first" / "model", work=tmp_path / "first")
    assert told[-1].chosen == "weight_only"
    assert [each["p50_ms"] for each in told[-1].candidates] == pytest.approx([3.9, 2.6], rel=0.3)
    assert "before the interruption" not in told[-1].because
    assert "timed on this CPU" not in told[-1].because

    def never(*_arguments, **_named):
        raise AssertionError("timed again")

    monkeypatch.setattr(choice, "time_side_by_side", never)
    for work, left in ((tmp_path / "second", tmp_path / "second"), (None, tmp_path / "third" / "model.quantize")):
        left.mkdir(parents=True)
        shutil.copyfile(tmp_path / "first" / "choice.json", left / "choice.json")
        out = (work or left.parent) / "model"
        made.fit(out, work=work)
        assert told[-1].chosen == "weight_only"
        assert "as timed before the interruption" in told[-1].because
        assert {path.name for path in out.parent.iterdir()} == ({"model", "choice.json"} if work else {"model"})


def test_a_choice_by_times_leaves_nothing_beside_the_model_and_touches_nothing_there(fp32, tmp_path, monkeypatch):
    monkeypatch.setattr(
        choice, "time_side_by_side", lambda folders, *_, **__: times(**dict.fromkeys(folders, (2.0, 0.0)))
    )
    (tmp_path / "choice.json").write_text("somebody's")
    other = next(name for name in ("avx2", "avx512") if name != choice.cpu_isa())
    told = []
    both = ["dynamic", "weight_only"]
    Quantizer(fp32, data=data_of(TEXTS), try_=both, choose="fastest", isa=other, decide=told.append).fit(
        tmp_path / "model"
    )
    assert (tmp_path / "choice.json").read_text() == "somebody's"
    assert {path.name for path in tmp_path.iterdir()} == {"model", "choice.json"}
    assert f"(timed on this CPU, which has {choice.cpu_isa()}, not {other})" in told[-1].because


def test_in_a_smoke_run_nothing_is_timed(fp32, tmp_path, monkeypatch):
    def never(*_arguments, **_named):
        raise AssertionError("timed")

    monkeypatch.setattr(choice, "time_side_by_side", never)
    data, both = data_of(TEXTS), ["dynamic", "weight_only"]
    assert Quantizer(fp32, data=data, try_=both, choose="fastest", smoke=True).fit(tmp_path / "model").is_dir()
