"""Every recipe that we ship is loaded and planned."""

from importlib import resources
from pathlib import Path

import pytest
import yaml

from compressor.recipe.recipe import Recipe
from compressor.runner.plan import plan

ROOT = Path(__file__).parent.parent
RECIPES = sorted(path for pattern in ("*.yaml", "*.yml") for path in (ROOT / "recipes").rglob(pattern))
BUILTINS = sorted(
    entry.name for entry in resources.files("compressor.builtin").iterdir() if entry.name.endswith(".yaml")
)


def test_there_are_recipes():
    assert RECIPES
    assert BUILTINS


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_planned(path, tmp_path):
    recipe = Recipe.load(path)
    lines = plan(recipe, tmp_path / "run")
    assert [line.stage for line in lines] == ["teacher", *(stage.id for stage in recipe.stages)]
    assert {line.status for line in lines} == {"MISS"}
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_says_what_it_is_for(path):
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("name", BUILTINS)
def test_builtin_recipe_is_planned(name, desk):
    text = {
        "version": 1,
        "name": "uses-builtin",
        "extends": [f"builtin:{name.removesuffix('.yaml')}"],
        "data": {"train": "reviews.csv", "text": "review", "label": "stars"},
        "teacher": {"model": "./my-bert", "finetune": {}},
    }
    (desk / "recipe.yaml").write_text(yaml.safe_dump(text))
    recipe = Recipe.load(desk / "recipe.yaml")
    lines = plan(recipe, desk / "run")
    assert len(lines) > 1
    assert any("layer pairs" in detail for line in lines for detail in line.details)
