"""What a run leaves: the files of its report, and `final/` as a whole."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compressor.model.digest import model_digest
from compressor.model.manifest import DIGEST_SCHEME, ENGINE_KEY
from compressor.runner.chain import Chain
from compressor.runner.directory import read_json, write_json
from compressor.runner.laid_out import lay_out
from compressor.runner.scoring import onnx_folder
from compressor.stage import silent

if TYPE_CHECKING:
    from compressor.report.model import Report
    from compressor.report.subjects import Subject

TEMPERATURE_ROWS = 200
"""Fewest rows of select that a temperature is trusted from."""


@dataclass(frozen=True)
class Made:
    """A report and what it rests on."""

    report: Report
    timings: Mapping[str, Any] | str
    """Raw timings by target, or why there are none."""
    subjects: tuple[Subject, ...]
    """With their answers on the scored rows."""
    apart: list[dict[str, Any]]
    """The rows on which the best candidate answers otherwise than the teacher."""
    engine: str | None = None
    """The engine that was measured to be the fastest for it on the CPU; None where no target asked for that."""


def write_report_and_final(chain: Chain, made: Made, best: str, key: str) -> None:
    """The report's files, then `final/` as a whole, then the key that says both stand."""
    from compressor.report.card import model_card
    from compressor.report.kept import file_hashes, keep_answers, write_golden
    from compressor.report.measure import write_report

    directory, data = chain.directory, chain.data
    part, rows = data.scored_part, data.scored
    (directory.report / "key.json").unlink(missing_ok=True)
    write_report(made.report, directory.report, made.timings, made.apart)
    keep_answers(directory.report, made.subjects, rows.labels, data.labels, rows=rows.digest(), part=part)
    source = onnx_folder(chain.folder(best), data=chain.data, progress=silent)
    partial = directory.root / "final.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    lay_out(chain, partial, best)
    manifest = read_json(partial / "compressor.json")
    card = model_card(made.report, best=best, base_model=_hub_id(chain), labels=tuple(data.labels))
    (partial / "README.md").write_text(card, encoding="utf-8")
    write_golden(partial)
    verdict = {
        "digest_scheme": DIGEST_SCHEME,
        "verdict": made.report.verdict,
        "stage": best,
        "recipe": chain.recipe.name,
        "version": version(),
    }
    known: dict[str, Any] = {**_temperature(made.report, best, len(data.select))}
    if chain.smoke:
        known["smoke"] = True
    if made.engine is not None:
        known[ENGINE_KEY] = made.engine
    write_json(partial / "compressor.json", {**manifest, **verdict, **known, "files": file_hashes(partial)})
    shutil.rmtree(directory.final, ignore_errors=True)
    os.replace(partial, directory.final)
    write_json(directory.report / "key.json", {"key": key, "final": model_digest(directory.final)})


def _temperature(report: Report, best: str, rows: int) -> dict[str, float]:
    """The temperature of the deployed model, where it was fitted on rows enough and made its confidence truer."""
    found = report.subject(best).calibration
    if found is None or rows < TEMPERATURE_ROWS or found.error_after >= found.error:
        return {}
    return {"temperature": found.temperature}


def _hub_id(chain: Chain) -> str | None:
    """Where the teacher comes from, as a hub id; None where that is a folder or a package."""
    path, base = chain.recipe.teacher.model.path, chain.recipe.base
    return path if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", path) and not (base / path).exists() else None


def version() -> str:
    """Version of this package."""
    import importlib.metadata

    try:
        return importlib.metadata.version("bert-compressor")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
