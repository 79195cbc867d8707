"""The engines that a report times its models on: torch weights as subjects of their own, `fastest` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from compressor.bench.settings import Target
from compressor.data.rows import Text
from compressor.report.subjects import Subject, draw_texts
from compressor.report.workloads import skipped
from compressor.runtime.choose import EngineChoice, at_target
from compressor.stage import Progress, silent


def torch_subjects(folders: Mapping[str, Path], *, base: Path | None = None) -> list[Subject]:
    """Those of the named folders that hold torch weights, as subjects of engine torch; paths relative to `base`."""
    return [
        Subject(name=name, folder=home, engine="torch", path=str(home.relative_to(base) if base else home))
        for name, home in folders.items()
        if any(home.glob("*.safetensors"))
    ]


def with_engines(
    targets: Mapping[str, Target],
    asked: Sequence[str],
    folder: Path,
    texts: Sequence[Text],
    *,
    seed: int = 17,
    progress: Progress = silent,
) -> tuple[dict[str, Target], dict[str, EngineChoice]]:
    """The targets with the engine of each, and for `fastest`, measured on the model in `folder`, the choice.

    Args:
        asked: names of the targets that are timed.
    """
    found, choices = dict(targets), dict[str, EngineChoice]()
    for name in asked:
        if found[name].engine == "fastest" and skipped(found[name]) is None:
            drawn = draw_texts(texts, seed=seed)
            found[name], choice = at_target(found[name], folder, drawn, progress=progress)
            if choice is not None:
                choices[name] = choice
    return found, choices


def told_choices(choices: Mapping[str, EngineChoice], stage: str) -> list[dict[str, object]]:
    """The choices as a report tells decisions, made on the model of that name."""
    told = []
    for name, choice in choices.items():
        found = choice.decision()
        line = {"kind": found.kind, "chosen": found.chosen, "because": found.because, "candidates": found.candidates}
        told.append({"stage": stage, "target": name, **line})
    return told
