"""The pages on INT8 and on pruning are true: recipes load and are planned, Python runs, no setting is missing."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from compressor.recipe.recipe import Recipe
from compressor.runner.plan import plan

ROOT = Path(__file__).parent.parent
PAGE, PRUNING = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("int8.md", "pruning.md"))


def blocks(page, wanted):
    return [body for language, body in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.S | re.M) if language == wanted]


RECIPES = [*blocks(PAGE, "yaml"), *blocks(PRUNING, "yaml")]
PROGRAMS = blocks(PAGE, "python")
HEAD = {
    "version": 1,
    "name": "page",
    "data": {"train": "reviews.csv", "text": "review", "label": "stars"},
    "teacher": {"model": "./my-bert", "finetune": {}},
}


def test_the_page_holds_recipes_and_a_program():
    assert len(blocks(PAGE, "yaml")) >= 7
    assert len(blocks(PRUNING, "yaml")) >= 5
    assert len(PROGRAMS) == 1


@pytest.mark.parametrize("body", RECIPES)
def test_a_recipe_of_the_page_is_planned(body, desk):
    (desk / "page.yaml").write_text(yaml.safe_dump(HEAD, sort_keys=False) + body)
    recipe = Recipe.load(desk / "page.yaml")
    lines = plan(recipe, desk / "run")
    assert [line.stage for line in lines] == ["teacher", *(stage.id for stage in recipe.stages)]


def test_the_program_of_the_page_runs(desk, tiny_classifier):
    shutil.rmtree(desk / "my-bert")
    shutil.copytree(tiny_classifier, desk / "my-bert")
    (code,) = PROGRAMS
    done = subprocess.run([sys.executable, "-c", code], cwd=desk, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] in ("['bad']", "['good']")
    assert (desk / "out" / "hub" / "onnx" / "model_quantized.onnx").is_file()
    assert (desk / "out" / "hub" / "onnx" / "model.onnx").is_file()
    assert (desk / "out" / "hub" / "serve" / "fastapi" / "app.py").is_file()


def test_every_scheme_method_and_setting_of_quantize_is_on_the_page():
    from typing import get_args

    from compressor.quantize.settings import Calibrate, Choice, Isa, Mixed, Qat, RangeMethod, Scheme, WeightOnly
    from compressor.runtime.engine import Opened
    from compressor.stages.quantize import Quantize

    words = [*get_args(Scheme), *get_args(Choice), *get_args(RangeMethod), *get_args(Isa), *get_args(Opened)]
    assert [word for word in words if f"`{word}`" not in PAGE] == []
    groups = {"calibrate": Calibrate, "mixed": Mixed, "qat": Qat, "weight_only": WeightOnly}
    keys = [f"{name}.{field.alias or key}" for name, kind in groups.items() for key, field in kind.model_fields.items()]
    assert len(keys) > 10
    assert [key for key in keys if f"`{key}`" not in PAGE] == []
    own = [field.alias or key for key, field in Quantize.model_fields.items() if key not in ("id", "from_", "gate")]
    assert [key for key in own if f"`{key}`" not in PAGE and f"`{key}." not in PAGE] == []


def test_every_kind_score_and_setting_of_prune_is_on_the_page():
    from typing import get_args

    from compressor.prune.settings import KINDS, QUANTITIES, Criterion, MaskKind, Masks, Recover, Remove
    from compressor.stages.prune import Prune

    own = [field.alias or key for key, field in Prune.model_fields.items() if key not in ("id", "from_", "gate")]
    words = [
        *KINDS,
        *QUANTITIES,
        *get_args(Criterion),
        *get_args(MaskKind),
        *Remove.model_fields,
        *Masks.model_fields,
        *own,
    ]
    missing = [word for word in words if not re.search(rf"[`{{ ]{word}[`:,}}]", PRUNING)]
    assert missing == []
    assert [key for key in Recover.model_fields if key not in PRUNING] == []
