import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compressor import cli
from compressor.cli import display
from compressor.cli.app import verbs
from compressor.errors import GateError, InputError, StageError, UndecidedError
from compressor.runner import doctor
from compressor.runner import run as runner_run
from compressor.runner.run import RunResult

HEAVY = ("torch", "transformers", "onnxruntime", "evaluate", "pandas", "datasets", "optimum", "accelerate", "sklearn")

RECIPE = "name: small\ndata: {train: train.csv}\nteacher: {model: ./teacher}\nstages: [{id: ship, export: {}}]\n"

CONFIG = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 30,
    "id2label": {"0": "negative", "1": "positive"},
}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """The working directory, with a recipe that loads."""
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "teacher" / "model.safetensors").write_bytes(b"")
    rows = "".join(f"film {n},{'positive' if n % 2 else 'negative'}\n" for n in range(40))
    (tmp_path / "train.csv").write_text("text,label\n" + rows)
    (tmp_path / "small.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compress(*words: str):
    return CliRunner().invoke(cli.app, list(words), prog_name="compress")


def in_fresh_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(cli.__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1", **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=120)


def faked(monkeypatch, outcome):
    """Make the runner return or raise `outcome`; what it was called with."""
    calls = []

    def run(recipe, out, *, redo=(), progress, say):
        calls.append((recipe, out, tuple(redo)))
        progress("student: train", 0, 10)
        say("student: distill")
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(runner_run, "run", run)
    return calls


DONE = RunResult({"schema": 1, "verdict": "pass"}, Path("runs/small/final"), "THE TABLE", 0)


def test_help_shows_the_recipes_options_and_the_verbs():
    result = compress("--help")
    assert result.exit_code == 0
    for word in ("RECIPE", "--out", "--set", "--plan", "--smoke", "--redo", "--quiet", "--json", *verbs()):
        assert word in result.output
    assert compress().output == result.output


def test_there_are_no_stubs_among_the_verbs():
    wanted = {
        "report",
        "why",
        "push",
        "schema",
        "init",
        "doctor",
        "bench",
        "inspect",
        "diff",
        "verify",
        "score",
        "folds",
    }
    assert set(verbs()) == wanted


@pytest.mark.parametrize(
    "words",
    [["--help"], ["bench", "--help"], ["small.yaml", "--plan"], ["broken.yaml"], ["schema"], ["nothing"]],
)
def test_help_plan_and_recipe_errors_load_nothing_heavy(project, words):
    (project / "broken.yaml").write_text(RECIPE + "sed: 3\n")
    code = (
        "import sys\n"
        f"sys.argv = ['compress', *{words!r}]\n"
        "from compressor.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    print('CODE', end.code)\n"
        f"print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    done = in_fresh_process(code)
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr
    assert f"CODE {2 if words[0] in ('broken.yaml', 'nothing') else 0}" in done.stdout, done.stderr


def test_a_recipe_error_is_lines_on_stderr_with_exit_code_2_and_no_run_directory(project):
    (project / "broken.yaml").write_text(RECIPE + "sed: 3\nbudget: {size: 40}\n")
    result = compress("broken.yaml")
    assert result.exit_code == 2
    assert result.stdout == ""
    first, second, last = result.stderr.splitlines()
    assert first == "broken.yaml:5:1 sed is not a key here (got 3); did you mean seed?"
    assert second.startswith("broken.yaml:6:16 budget.size must be a comparison")
    assert last == "2 problems to solve; nothing was run"
    assert not (project / "runs").exists()


def test_a_first_word_that_is_neither_verb_nor_file_gets_did_you_mean(project):
    assert "smal.yaml is neither a verb nor a file; did you mean small.yaml?" in compress("smal.yaml").stderr
    result = compress("docter")
    assert result.exit_code == 2
    assert "docter is neither a verb nor a file; did you mean doctor?" in result.stderr


def test_two_recipes_and_no_recipe_are_refused(project):
    assert compress("small.yaml", "small.yaml").exit_code == 2
    assert compress("--plan").exit_code == 2
    assert "names no recipe" in compress("--plan").stderr


def test_a_plan_makes_nothing(project):
    before = sorted(project.rglob("*"))
    result = compress("--plan", "small.yaml")
    assert result.exit_code == 0, result.output
    assert "teacher (teacher)  MISS: " in result.stdout
    assert "MISS: follows teacher" in result.stdout
    assert sorted(project.rglob("*")) == before


def test_a_plan_in_json_is_a_list_of_stages(project):
    found = json.loads(compress("small.yaml", "--plan", "--json").stdout)
    assert [(line["stage"], line["status"]) for line in found] == [("teacher", "MISS"), ("ship", "MISS")]


def test_redo_of_an_unknown_stage_suggests_one(project):
    result = compress("small.yaml", "--redo", "shp")
    assert (result.exit_code, result.stderr) == (2, "--redo shp: no such stage; did you mean ship?\n")


def test_the_options_reach_the_runner(project, monkeypatch):
    calls = faked(monkeypatch, DONE)
    assert compress("small.yaml", "--set", "seed=3", "--redo", "ship", "--out", "here").exit_code == 0
    assert compress("small.yaml", "--smoke", "--out", "here").exit_code == 0
    assert compress("small.yaml", "--smoke").exit_code == 0
    (recipe, out, redo), smoke, default = calls
    assert (recipe.seed, out, redo) == (3, Path("here"), ("ship",))
    assert (smoke[0].smoke_rows, smoke[1]) == (64, Path("here-smoke"))
    assert default[1] == Path("runs/small-smoke")


def test_json_leaves_stdout_to_the_report(project, monkeypatch):
    faked(monkeypatch, DONE)
    result = compress("small.yaml", "--json")
    assert json.loads(result.stdout) == {"schema": 1, "verdict": "pass"}
    assert result.stderr == ""


def test_a_pipe_gets_plain_lines(project, monkeypatch):
    faked(monkeypatch, DONE)
    result = compress("small.yaml")
    assert result.stdout.splitlines()[:2] == ["student: distill", "THE TABLE"]
    assert result.stderr == "student: train\n"


def test_quiet_shows_the_result_alone(project, monkeypatch):
    faked(monkeypatch, DONE)
    result = compress("small.yaml", "--quiet")
    assert result.stdout.startswith("THE TABLE\n")
    assert result.stderr == ""


def test_a_phase_is_told_at_its_start_its_end_and_every_ten_seconds(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: clock[0])
    lines = display.Lines()
    for step in range(25):
        clock[0] = float(step)
        lines("train", step, 25)
    lines("save", 0, None)
    lines.close()
    assert capsys.readouterr().err.splitlines() == [
        "train",
        "train: 10 of 25 after 10 s, 15 s left",
        "train: 20 of 25 after 20 s, 5 s left",
        "train: done in 24 s",
        "save",
    ]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("rows are wrong"), 2),
        (GateError("gate broke"), 3),
        (UndecidedError("too few rows"), 4),
        (StageError("stage broke"), 5),
        (KeyboardInterrupt(), 130),
        (OSError(28, "No space left on device"), 5),
    ],
)
def test_exit_codes_follow_the_kind_of_error(project, monkeypatch, error, code):
    faked(monkeypatch, error)
    result = compress("small.yaml")
    assert result.exit_code == code
    assert "Traceback" not in result.output
    assert not (project / "runs" / "small" / "error.log").exists()


def test_a_result_brings_its_own_exit_code_and_message(project, monkeypatch):
    faked(monkeypatch, RunResult({}, None, "T", 3, "budget accuracy failed"))
    result = compress("small.yaml", "--quiet")
    assert (result.exit_code, result.stderr) == (3, "budget accuracy failed\n")


def test_our_own_bug_is_one_line_and_a_trace_in_error_log(project, monkeypatch):
    faked(monkeypatch, ZeroDivisionError("oh no"))
    result = compress("small.yaml", "--quiet")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "ZeroDivisionError: oh no" in line
    assert "runs/small/error.log" in line
    trace = (project / "runs" / "small" / "error.log").read_text()
    assert "Traceback" in trace
    assert "ZeroDivisionError: oh no" in trace


@pytest.mark.parametrize(
    ("words", "called", "number", "then"),
    [
        (["small.yaml"], "compressor.runner.run.run", signal.SIGINT, "goes on from here"),
        (["small.yaml"], "compressor.runner.run.run", signal.SIGTERM, "goes on from here"),
        (["folds", "small.yaml"], "compressor.runner.folds.run_folds", signal.SIGTERM, "goes on from here"),
        (["bench", "model"], "compressor.report.bench.bench", signal.SIGTERM, "starts anew"),
    ],
)
def test_a_signal_ends_with_130(project, words, called, number, then):
    module, _, name = called.rpartition(".")
    code = (
        f"import signal, sys, time, {module}\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell ignores it in the background
        "def wait(*_places, **_settings):\n    print('READY', flush=True); time.sleep(60)\n"
        f"sys.modules['{module}'].{name} = wait\n"
        f"sys.argv = ['compress', *{words}]\n"
        "from compressor.cli import main\nmain()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "READY\n"
        time.sleep(0.1)
        process.send_signal(number)
        _out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == f"interrupted; the same command {then}\n"


def test_python_m_compressor_is_the_same(project):
    start = "runpy.run_module('compressor', run_name='__main__')"
    done = in_fresh_process(f"import runpy, sys; sys.argv = ['x', 'schema']; {start}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == compress("schema").stdout


def test_schema_is_json():
    assert json.loads(compress("schema").stdout)["properties"]["stages"]


def test_init_writes_a_recipe_once(project):
    assert compress("init").exit_code == 0
    text = (project / "recipe.yaml").read_text()
    assert text.startswith("# ")
    result = compress("init")
    assert result.exit_code == 2
    assert "recipe.yaml exists" in result.stderr
    assert (project / "recipe.yaml").read_text() == text


def test_why_shows_the_decisions_of_a_stage(project):
    folder = project / "runs" / "small" / "stages" / "slim"
    folder.mkdir(parents=True)
    line = {"stage": "slim", "kind": "layer", "chosen": "kept 2", "because": "it costs more"}
    line |= {"candidates": [1], "cost": None}
    (folder / "stage.json").write_text("{}")
    (folder / "decisions.jsonl").write_text(json.dumps(line) + "\n")
    assert compress("why", "runs/small", "slim").stdout == "layer: kept 2 because it costs more\n    candidates: [1]\n"
    assert "did you mean slim?" in compress("why", "runs/small", "slm").stderr
    assert compress("why", "nowhere", "slim").exit_code == 2
    folder.rename(folder.with_name("slim.partial"))
    assert "holds no stages" in compress("why", "runs/small", "slim.partial").stderr


def test_report_of_what_is_no_run_is_refused(project):
    result = compress("report", "nowhere")
    assert result.exit_code == 2
    assert "nowhere" in result.stderr


def test_doctor_tells_python_processor_threads_cache_and_pip(project):
    result = compress("doctor")
    for word in ("python", "processor", "threads", "cache", "pip", "runs"):
        assert f"  {word}" in result.stdout
    assert result.exit_code == (2 if "\nfail" in result.stdout else 0)


def test_doctor_lists_the_engines_that_are_installed(monkeypatch):
    versions = {"torch": "2.13.0+cpu"}

    def version(name):
        if name not in versions:
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    onnx, torch, openvino = doctor.engines()
    assert (onnx.state, onnx.subject) == ("ok", "engine")
    assert re.fullmatch(r"onnxruntime [0-9.]+, providers .*CPU.*", onnx.words)
    assert (torch.state, torch.words) == ("ok", "torch 2.13.0+cpu, on the CPU")
    assert openvino.state == "note"
    assert openvino.words.startswith("openvino is not installed; pip install 'bert-compressor[openvino]'")
    versions["openvino"] = "2026.4.0"
    assert doctor.engines()[2].words == "openvino 2026.4.0, on the CPU"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert doctor.engines()[0].state == "fail"


def test_doctor_does_not_load_torch():
    code = "import sys\nfrom compressor.runner.doctor import engines\nengines()\n"
    code += "assert not {'torch', 'openvino', 'transformers'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_doctor_names_a_missing_and_an_old_library(monkeypatch):
    versions = {"here": "2.0", "old": "1.9.9+cpu"}

    def version(name):
        if name not in versions:
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    wanted = ["here>=2.0", "old>=1.10", "gone>=3", "dev>=1; extra == 'dev'"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _name: wanted)
    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    names = ("here", "old", "gone", "dev")
    found = [finding for finding in doctor.findings(folder=Path()) if finding.subject in names]
    states = [(finding.state, finding.subject) for finding in found]
    assert states == [("ok", "here"), ("fail", "old"), ("fail", "gone")]
    assert "pip install 'old>=1.10'" in found[1].words


def test_why_doctor_and_report_write_json_alone(project):
    folder = project / "runs" / "small" / "stages" / "slim"
    folder.mkdir(parents=True)
    (folder / "stage.json").write_text("{}")
    (folder / "decisions.jsonl").write_text('{"kind": "layer", "chosen": 2, "because": "so"}\n')
    assert json.loads(compress("why", "runs/small", "slim", "--json").stdout)[0]["chosen"] == 2
    assert {"state", "subject", "words"} == set(json.loads(compress("doctor", "--json").stdout)[0])


def test_bench_gives_its_options_to_the_room_and_shows_the_table(project, monkeypatch):
    from compressor.report import bench as room
    from compressor.report.model import Report

    report = Report(
        verdict="none", task={"metric": "accuracy"}, machine={}, data={}, budgets=(), subjects=(), ladder=()
    )
    asked = {}
    monkeypatch.setattr(Report, "table", lambda _self: "THE TABLE\n")
    monkeypatch.setattr(room, "bench", lambda paths, **said: asked.update(said, paths=paths) or report)
    words = ["--rows", "a.csv", "--rounds", "4", "--threads", "1", "--scenario", "one core", "--batch", "8"]
    result = compress("bench", "one", "two", *words, "--price", "0.2")
    assert (result.exit_code, result.stdout) == (0, "THE TABLE\n")
    assert (asked["paths"], asked["rounds"], asked["threads"]) == (["one", "two"], 4, 1)
    assert asked["benchmark"].scenarios == ["single stream", "one core"]
    assert asked["benchmark"].grid.batch == [8]
    assert json.loads(compress("bench", "one", "--json").stdout)["schema"] == 1
    wrong = compress("bench", "one", "--scenario", "arrivals")
    assert wrong.exit_code == 2
    assert "--scenario arrivals and --p99-ms MS need each other; give both or neither" in wrong.stderr
    compress("bench", "one", "--looks", "2", "--train", "t.csv")
    assert (asked["looks"], asked["train"]) == (2, Path("t.csv"))


def test_verify_of_a_model_that_changed_ends_with_3(project, monkeypatch):
    from compressor.report import verify as room

    checks = (room.Check("ok", "reload", "opens"), room.Check("fail", "final", "changed"))
    monkeypatch.setattr(room, "verify", lambda path, **_: room.Verification(str(path), checks))
    result = compress("verify", "runs/small")
    assert result.exit_code == 3
    assert result.stdout == "ok           reload  opens\nfail         final   changed\n"
    assert result.stderr == "runs/small is not what was recorded: final\n"
    assert json.loads(compress("verify", "runs/small", "--json").stdout)["passed"] is False


def test_score_needs_a_teacher(project):
    result = compress("score", "teacher", "train.csv")
    assert result.exit_code == 2
    assert "--against" in result.output


def test_diff_of_what_is_no_run_is_refused(project):
    result = compress("diff", "nowhere", "here")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "nowhere holds no report/report.json; give a finished run" in result.stderr


@pytest.mark.parametrize(("done", "total", "left"), [(0, 10, None), (5, 10, 4.0), (5, None, None), (10, 10, 0.0)])
def test_the_time_left_follows_from_the_speed_so_far(done, total, left):
    assert display.time_left(done, total, 4.0) == left


def test_the_page_of_commands_names_every_verb_and_only_options_that_there_are():
    import re

    page = (Path(cli.__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")
    assert [verb for verb in verbs() if f"`compress {verb}" not in page] == []
    known = compress("--help").output + "".join(compress(verb, "--help").output for verb in verbs())
    options = set(re.findall(r"--[a-z][a-z0-9-]+", page))
    assert len(options) > 15
    assert [option for option in sorted(options) if option not in known] == []
