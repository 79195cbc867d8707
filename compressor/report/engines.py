"""The engines that a report times its models on: torch weights as subjects of their own, `fastest` measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compressor.bench.settings import Target
from compressor.data.rows import Text
from compressor.errors import CompressorError
from compressor.report.subjects import Subject, draw_texts
from compressor.report.workloads import in_short, skipped
from compressor.runtime.choose import EngineChoice, at_target
from compressor.stage import Progress, silent


@dataclass(frozen=True)
class Engines:
    """What runs each target."""

    targets: dict[str, Target]
    """Name to target with its engine, which stays `fastest` where none could be chosen."""
    choices: dict[str, EngineChoice]
    """What was measured for those of engine `fastest`."""
    unchosen: dict[str, str]
    """Why none could be chosen."""


def torch_subjects(
    folders: Mapping[str, Path], targets: Iterable[Target], *, base: Path | None = None
) -> list[Subject]:
    """Those of the named folders that hold torch weights, as subjects of engine torch; none where no target is.

    `targets` are those asked for, by `with_engines`; paths are relative to `base`.
    """
    if all(target.engine != "torch" for target in targets):
        return []
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
    path: str | None = None,
    progress: Progress = silent,
) -> Engines:
    """The targets with the engine of each, for `fastest` measured on the model in `folder`.

    Args:
        asked: names of the targets that are timed.
        path: what the reader knows the folder by, where it is a passing one.
    """
    found = Engines(dict(targets), {}, {})
    for name in asked:
        if targets[name].engine != "fastest" or skipped(targets[name]) is not None:
            continue
        try:
            drawn = draw_texts(texts, seed=seed)
            found.targets[name], choice = at_target(targets[name], folder, drawn, progress=progress)
        except CompressorError as error:  # what was trained is worth more than one column of its report
            found.unchosen[name] = in_short(error).replace(str(folder), path or str(folder))
            continue
        if choice is not None:
            found.choices[name] = choice
    return found


def told_choices(choices: Mapping[str, EngineChoice], stage: str) -> list[dict[str, object]]:
    """The choices as a report tells decisions, made on the model of that name."""
    told = []
    for name, choice in choices.items():
        found = choice.decision()
        line = {"kind": found.kind, "chosen": found.chosen, "because": found.because, "candidates": found.candidates}
        told.append({"stage": stage, "target": name, **line})
    return told
