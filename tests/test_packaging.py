"""What a wheel holds, and that each named dependency is one that the package declares and uses."""

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORTED_AS = {
    "huggingface_hub": "huggingface_hub",
    "protobuf": "google",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "torch-pruning": "torch_pruning",
}


def declared() -> set[str]:
    """The dependencies and what users may add; the extra `dev` is for those who work on this package."""
    extras = [line for extra, lines in PROJECT["optional-dependencies"].items() if extra != "dev" for line in lines]
    return {line.split(">=")[0] for line in [*PROJECT["dependencies"], *extras]}


def imported() -> set[str]:
    found = set()
    for path in (ROOT / "compressor").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").split(".")[0])
    return found - set(sys.stdlib_module_names) - {"compressor", "__future__"}


def test_every_declared_dependency_is_imported_and_every_imported_one_is_declared():
    assert {IMPORTED_AS.get(name, name) for name in declared()} == imported()


def test_the_fields_own_libraries_are_dependencies():
    wanted = {
        "torch",
        "transformers",
        "torch-pruning",
        "optimum",
        "onnx",
        "onnxruntime",
        "evaluate",
        "accelerate",
        "datasets",
        "pydantic",
        "typer",
        "rich",
    }
    assert wanted <= declared()


def test_the_constraints_pin_every_dependency():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower() for line in lines if "==" in line}
    assert {name.lower() for name in declared()} <= pinned


@pytest.mark.registry
def test_the_wheel_holds_builtin_recipes_templates_and_types(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    shutil.copytree(ROOT / "compressor", source / "compressor", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("bert_compressor-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    data = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "compressor").rglob("*")
        if path.suffix in {".yaml", ".j2", ".css", ".js"} or path.name == "py.typed"
    }
    assert len(data) >= 4
    assert data <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    assert "compress = compressor.cli:main" in zipfile.ZipFile(wheel).read(entry).decode()
