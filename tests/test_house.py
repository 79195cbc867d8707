"""The house: layers, lightness, and that no room reaches sideways or up."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "compressor"

LAYERS = [
    {"errors", "settings"},
    {"device", "sources"},
    {"stage", "bench", "data", "model"},
    {"runtime", "train", "evaluate"},
    {"distill", "export"},
    {"prune", "quantize", "report"},
    {"stages"},
    {"recipe"},
    {"runner"},
    {"cli"},
    {"__init__", "__main__", "auto"},
]
LAYER_OF = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
HEAVY = {"torch", "transformers", "onnxruntime", "evaluate", "pandas", "datasets", "optimum", "onnx", "torch_pruning"}
STANDALONE = {"export/predict.py", "model/pruned_modeling.py"}  # copied into model folders: import nothing of ours

FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms of this package that a file imports anywhere, in functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "compressor":
                names = [f"compressor.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("compressor.")}
    return found


def violations(files: list[Path]) -> list[str]:
    wrong = []
    for path in files:
        own = room(path)
        if own == "__init__":
            continue
        for other in imported_rooms(path):
            if other != own and LAYER_OF[other] >= LAYER_OF[own]:
                wrong.append(f"{path.relative_to(PACKAGE)} ({own}) imports {other}")
    return wrong


def test_every_room_has_a_layer():
    assert FILES
    assert {room(path) for path in FILES} - {"builtin"} <= set(LAYER_OF)


def test_imports_go_down_only_and_never_sideways():
    assert violations(FILES) == []


def test_the_layer_check_can_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "data").mkdir()
    wrong = tmp_path / "data" / "rows.py"
    wrong.write_text("def f():\n    from compressor.distill import losses\n")
    assert violations([wrong]) == ["data/rows.py (data) imports distill"]


@pytest.mark.parametrize("name", sorted(STANDALONE))
def test_files_that_ship_in_model_folders_import_nothing_of_ours(name):
    assert imported_rooms(PACKAGE / name) == set()


def test_package_inits_are_empty():
    entry = PACKAGE / "cli"  # where the installed command starts
    inits = [path for path in FILES if path.name == "__init__.py" and path.parent not in (PACKAGE, entry)]
    assert inits
    assert [str(path) for path in inits if path.read_text().strip()] == []


def light_modules() -> list[str]:
    rooms = {"errors", "settings", "device", "sources", "stage", "bench", "stages", "recipe", "runner", "cli"}
    extra = {
        "data/rows.py",
        "data/readers.py",
        "data/encode.py",
        "train/schedules.py",
        "distill/layer_map.py",
        "distill/cache_plan.py",
        "quantize/targets.py",
        "model/digest.py",
        "model/manifest.py",
        "model/student_shapes.py",
    }
    light = [
        path
        for path in FILES
        if room(path) in rooms or path.name == "settings.py" or str(path.relative_to(PACKAGE)) in extra
    ]
    names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in light]
    return [*sorted(name.removesuffix(".__init__") for name in names), "compressor"]


def test_light_modules_load_nothing_heavy():
    names = light_modules()
    assert len(names) > 20
    code = "import importlib, sys\n" + "\n".join(f"importlib.import_module({name!r})" for name in names)
    code += f"\nprint(sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_the_command_line_prints_or_exits():
    wrong = []
    for path in FILES:
        if room(path) in {"cli", "__main__"} or str(path.relative_to(PACKAGE)) in {"export/predict.py"}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in {"print", "exit", "sys.exit", "os._exit", "SystemExit"}:
                wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert wrong == []
