"""The README is true: its blocks run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import compressor

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = [body for name, body in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M) if name == language]
    assert found, f"no {language or 'plain'} block"
    return found


def in_process(desk: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=desk, capture_output=True, text=True, timeout=900)


def test_the_python_block_runs_in_under_20_lines_and_makes_a_deployable_model(desk):
    code, patient = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) < 20
    done = in_process(desk, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] in ("['bad']", "['good']")
    assert (desk / "out" / "final" / "model.onnx").is_file()
    assert (desk / "out" / "final" / "predict.py").is_file()
    given = 'import compressor as c\nteacher = "out/teacher"\n' + next(
        line for line in code.splitlines() if line.startswith("data = ")
    )
    done = in_process(desk, "-c", f"{given}\n{patient}")
    assert done.returncode == 0, done.stderr
    assert (desk / "out" / "patient" / "model.safetensors").is_file()
    assert (desk / "out" / "patient-work" / "controls" / "no_kd" / "model" / "config.json").is_file()


def test_the_recipe_and_console_blocks_run(desk):
    (recipe,) = blocks("yaml")
    # the README's teacher is fine-tuned; the test's is made here from a random encoder
    recipe = recipe.replace("{model: ./my-bert} ", "{model: ./my-bert, finetune: {train: {epochs: 1}}} ")
    assert "finetune: {train" in recipe
    (desk / "reviews.yaml").write_text(recipe, encoding="utf-8")
    commands = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    assert len(commands) >= 4
    for command in commands:
        program, *words = command.split()
        assert program == "compress"
        done = in_process(desk, "-m", "compressor", *words)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (desk / "runs" / "reviews" / "final" / "model.onnx").is_file()
    assert (desk / "runs" / "reviews-smoke" / "report" / "report.json").is_file()


def test_the_make_targets_of_the_readme_are_in_the_makefile():
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("")), re.M)
    assert targets == ["quickstart", "test"]
    makefile = (ROOT / "Makefile").read_text()
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M)
    assert "--constraint constraints.txt" in makefile
    assert "compress recipes/quickstart.yaml" in makefile


def test_the_install_lines_use_the_constraints_that_are_there():
    lines = re.findall(r"`((?:py -m )?pip install [^`]*)`", README)
    assert len(lines) >= 4
    pinned = (ROOT / "constraints.txt").read_text()
    for line in lines:
        for name in re.findall(r"(\S+==\S+)", line):
            assert name in pinned
        assert "-c constraints.txt" in line or "torch==" in line


def test_every_public_name_is_in_the_readme():
    assert len(compressor.__all__) == 16
    missing = [name for name in compressor.__all__ if not re.search(rf"\b{name}\b", README)]
    assert missing == []
    for name in compressor.__all__:
        assert getattr(compressor, name) is not None


def test_no_public_name_is_shadowed_by_a_file():
    for name in compressor.__all__:
        assert not (ROOT / "compressor" / name).exists()
        assert not (ROOT / "compressor" / f"{name}.py").exists()


def test_the_figures_of_the_quickstart_are_those_of_the_kept_benchmark():
    import json
    import runpy

    result = json.loads((ROOT / "benchmarks/results/quickstart.json").read_text())
    sentence = runpy.run_path(str(ROOT / "benchmarks/quickstart.py"))["sentence"](result)
    assert sentence in " ".join(README.split())
    assert result["seconds"] <= 360
    assert result["verdict"] == "pass"
