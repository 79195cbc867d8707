"""Models that this tool did not make, as folders that it can open: any path, package or hub name."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compressor.errors import CompressorError, InputError
from compressor.model.graph_file import MODEL_FILE, model_file, open_graph, precision_of, require_classifier
from compressor.model.manifest import MANIFEST_NAME, Manifest, Precision, read_manifest
from compressor.sources.models import looks_local, resolve_model
from compressor.sources.settings import ModelSource
from compressor.stage import Progress, silent

ONNX_PLACES = ("*.onnx", "onnx/*.onnx")
"""Where optimum and others put the graph, beside or below config.json."""
WEIGHTS = ("*.safetensors", "*.onnx")


@dataclass(frozen=True)
class Opened:
    """A model that can be opened here."""

    given: str
    """As it was asked for."""
    folder: Path
    """Holds model.onnx or safetensors, config.json, a tokenizer and, unless it was ours already, our manifest."""
    manifest: Manifest
    precision: str
    """Of the weights: fp32, fp16, bf16 or int8."""
    copied: bool = False
    """Whether the folder is a copy of ours; any other is never written to."""


def open_model(given: str, *, work: Path, base: Path | None = None, progress: Progress = silent) -> Opened:
    """The model at a path, in a run, in a package or on the hub.

    A run directory stands for its `final/`, the folder of a stage for its model. A folder of ours is taken as it is;
    of another's a copy is made under `work`, with a manifest; its weights are links where the disk allows.

    Raises: InputError for what is no text classifier, or has a graph that takes or gives something else.
    """
    folder = find_model(given, base=base, progress=progress)
    if (folder / MANIFEST_NAME).is_file():
        manifest = read_manifest(folder)
        return Opened(given, folder, manifest, manifest.precision)
    graph, copied = _graph(folder), _copy(folder, work)
    with as_given({copied: given}):
        if graph is None:
            _require_classifier(copied, given)
            precision: Precision = "fp32"
        else:
            _link_graph(graph, copied)
            precision = _check_graph(copied / MODEL_FILE, given)
    manifest = replace(read_manifest(folder), precision=precision)
    manifest.write(copied)
    return Opened(given, copied, manifest, precision, copied=True)


@contextlib.contextmanager
def as_given(named: Mapping[Path, str]) -> Iterator[None]:
    """While open, an error calls each of these folders as the user did, not by the copy that stands for it."""
    try:
        yield
    except CompressorError as error:
        words = str(error)
        for folder in sorted(named, key=lambda one: -len(str(one))):
            words = words.replace(str(folder), named[folder])
        error.args = (words,)
        raise


def unnamed(opened: Opened) -> bool:
    """Whether the model's classes have no names but LABEL_0 and so on."""
    return all(name.startswith("LABEL_") for name in opened.manifest.labels)


def label_giver(opened: Sequence[Opened]) -> Opened:
    """The first model whose classes have names, wherever it stands; the first of all where none has."""
    return next((one for one in opened if not unnamed(one)), opened[0])


def relabelled(opened: Opened, giver: Opened, *, work: Path) -> Opened:
    """The model with its classes called as another calls them; InputError where they are other classes.

    Names that differ in case alone, or that are only LABEL_0 and so on, are taken for the other model's; a folder of
    ours is then copied under `work`, with links to its weights.
    """
    wanted, own = giver.manifest.labels, opened.manifest.labels
    if wanted == own:
        return opened
    alike = [name.casefold() for name in own] == [name.casefold() for name in wanted]
    if len(own) != len(wanted) or not (alike or unnamed(opened)):
        raise InputError(
            f"{opened.given} answers {', '.join(own)}, {giver.given} answers {', '.join(wanted)}; give models that "
            "know the same labels in the same order"
        )
    folder, said = opened.folder, {}
    if not opened.copied:
        folder = _copy(opened.folder, work)
        if (graph := model_file(opened.folder)) is not None:
            _link_graph(graph, folder)
        said = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    manifest = replace(opened.manifest, labels=wanted)
    manifest.write(folder, extra=said)
    return replace(opened, folder=folder, manifest=manifest, copied=True)


def _copy(folder: Path, work: Path) -> Path:
    """A new folder under `work` with everything of a model folder but its graph."""
    copied = work / f"model-{len(list(work.iterdir())) if work.is_dir() else 0}"
    copied.mkdir(parents=True)
    _link_all(folder, copied)
    return copied


def find_model(given: str, *, base: Path | None = None, progress: Progress = silent) -> Path:
    """The folder with config.json and weights that is meant; InputError where there is none."""
    base = base or Path.cwd()
    place = base / os.path.expanduser(given)
    if looks_local(given, base) and place.is_dir():
        inside = [place, place / "final", place / "onnx", place / "model"]
        for folder in inside:
            if (folder / "config.json").is_file() and _has_weights(folder):
                return folder
    return resolve_model(ModelSource(path=given), base=base, progress=progress)


def _has_weights(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in (*WEIGHTS, "onnx/*.onnx"))


def _graph(folder: Path) -> Path | None:
    """The ONNX file to take: model.onnx, or the only one there is; None where torch weights are to be taken."""
    if (folder / MODEL_FILE).is_file():
        return folder / MODEL_FILE
    found = sorted(path for pattern in ONNX_PLACES for path in folder.glob(pattern))
    if any(folder.glob("*.safetensors")) or not found:
        return None
    named = [path for path in found if path.name == MODEL_FILE] or found
    if len(named) > 1:
        raise InputError(f"{folder} holds {len(named)} graphs: {', '.join(path.name for path in named)}; keep one")
    return named[0]


def _link_all(folder: Path, out: Path) -> None:
    """Every file but pickles and graphs."""
    for path in folder.iterdir():
        if path.is_file() and path.suffix not in (".onnx", ".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5"):
            _link(path, out / path.name)


def _link_graph(graph: Path, out: Path) -> None:
    """The graph as model.onnx, with the files of its weights beside it under their own names."""
    _link(graph, out / MODEL_FILE)
    for path in graph.parent.iterdir():
        if path.is_file() and path.name != graph.name and path.name.startswith(f"{graph.name}"):
            _link(path, out / path.name)


def _link(source: Path, target: Path) -> None:
    """A link to a file of weights, which are only read; a copy of any other, or where links are not allowed."""
    if target.exists():
        return
    if source.suffix == ".safetensors" or ".onnx" in source.name:
        with contextlib.suppress(OSError):  # another disk
            os.link(source.resolve(), target)
            return
    shutil.copyfile(source, target)


def _require_classifier(folder: Path, given: str) -> None:
    from compressor.model.encoders import copy_tokenizer, has_head

    if not has_head(folder):
        raise InputError(
            f"{given} has no trained classifier, so it has no answers to compare; give a fine-tuned text classifier"
        )
    if not (folder / "tokenizer.json").is_file():
        copy_tokenizer(folder, folder)


def _check_graph(file: Path, given: str) -> Precision:
    """The precision of a graph; InputError where it is no classifier that is fed with tokens alone."""
    graph = open_graph(file, weights=False).graph
    known = {one.name for one in graph.initializer}
    feeds = [one.name for one in graph.input if one.name not in known]
    require_classifier(feeds, [one.name for one in graph.output], where=given)
    return precision_of(graph)


def names_of(given: Sequence[str]) -> dict[str, str]:
    """A short name for each path to the path: its last part that tells them apart.

    >>> names_of(["runs/a/final", "org/bert-tiny"])
    {'a': 'runs/a/final', 'bert-tiny': 'org/bert-tiny'}
    """
    names: dict[str, str] = {}
    for path in given:
        parts = [part for part in Path(path).parts if part not in ("/", ".", "..")] or [Path(path).resolve().name]
        told = [part for part in parts if part not in ("final", "model", "onnx", "stages")] or parts
        name, place = told[-1], len(told) - 1
        while name in names and place > 0:
            place -= 1
            name = f"{told[place]}-{name}"
        if name in names:
            number = sum(known.startswith(f"{name} (") for known in names) + 2
            name = f"{name} ({number})"
        names[name] = path
    return names


def class_ids(found: Sequence[str | None], labels: Sequence[str], *, where: str) -> list[int | None]:
    """Ids of class names among a model's labels, in any case; by number where the model's labels have no names.

    Raises: InputError for a class that the model does not know.
    """
    known: Mapping[str, int] = {name.casefold(): number for number, name in enumerate(labels)}
    if all(name.startswith("LABEL_") for name in labels):
        known = {**known, **{str(number): number for number in range(len(labels))}}
    for row, name in enumerate(found):
        if name is not None and name.casefold() not in known:
            raise InputError(
                f"{where}: row {row + 1} has the label {name!r}, the models answer {', '.join(labels)}; name another "
                "column with --label, or leave the labels out"
            )
    return [None if name is None else known[name.casefold()] for name in found]
