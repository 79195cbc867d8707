"""`final/` laid out and served as the recipe's last export stage says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.model.manifest import read_manifest
from compressor.recipe.recipe import Recipe
from compressor.runner.chain import Chain, reads_of, with_previous
from compressor.runner.scoring import onnx_folder
from compressor.stage import silent
from compressor.stages.export import Export


def layout_asked(recipe: Recipe) -> dict[str, Any]:
    """Layout and servers of the recipe's last export stage; empty where they are the usual ones."""
    said = [stage for stage in recipe.stages if isinstance(stage, Export)]
    if not said or (said[-1].layout == "flat" and not said[-1].serve):
        return {}
    return {"layout": said[-1].layout, "serve": list(said[-1].serve)}


def lay_out(chain: Chain, folder: Path, best: str) -> Path:
    """`folder`, a flat copy of the deployed model, changed in place to the layout that the recipe asks for.

    It is the last export stage's, whichever model is deployed: where a gate broke before it, `final/` lies the same.
    """
    asked = layout_asked(chain.recipe)
    if not asked:
        return folder
    from compressor.export.layout import arrange

    return arrange(folder, **asked, fp32=_fp32(chain, best) if asked["layout"] == "hub" else None)


def _fp32(chain: Chain, best: str) -> Path | None:
    """ONNX file of the nearest fp32 model that the deployed one was made from; None where it is fp32 itself."""
    before = {stage.id: (stage, previous) for stage, previous in with_previous(tuple(chain.recipe.stages))}
    current = best
    while read_manifest(chain.folder(current) / "model").precision != "fp32":
        stage, previous = before[current]
        current = reads_of(stage, previous)["model"]
    if current == best:
        return None
    return onnx_folder(chain.folder(current), data=chain.data, progress=silent) / "model.onnx"
