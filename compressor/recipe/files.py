"""What a recipe says about files, held against those that are here; never the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compressor.data.rows import check_columns
from compressor.data.settings import Data, Label
from compressor.errors import InputError, Problem
from compressor.model.manifest import teacher_labels
from compressor.recipe.document import Fields, Items, Mark, Node, Scalar
from compressor.sources.models import looks_local, peek_model, resolve_model
from compressor.sources.settings import ModelSource


def place_of(root: Node, key: str) -> Mark:
    """Where a dotted key stands, or the nearest map or list around it that is written."""
    node = root
    for part in key.split("."):
        if isinstance(node, Fields) and part in node.entries:
            node = node.entries[part].node
        elif isinstance(node, Items) and part.isdigit() and int(part) < len(node.nodes):
            node = node.nodes[int(part)]
        else:
            break
    return node.mark


def written_labels(data: Node | None) -> tuple[str, tuple[str, ...]] | None:
    """Dotted key and names of the classes that a recipe's `data` writes out; None where it names none."""
    if not isinstance(data, Fields):
        return None
    labels = data.get("labels")
    if isinstance(labels, Items):
        return "data.labels", tuple(str(item.value) for item in labels.nodes if isinstance(item, Scalar))
    label = data.get("label")
    bins = label.get("bins") if isinstance(label, Fields) else None
    return ("data.label.bins", tuple(bins.entries)) if isinstance(bins, Fields) else None


def data_problems(data: Data, base: Path, root: Node) -> list[Problem]:
    """Files that are missing, columns that are not in their files, settings that exclude each other."""
    try:
        found = check_columns(data, base)
    except OSError as error:
        message = f"names a file that cannot be read: {error.strerror} (got {str(error.filename)[:60]!r})"
        return [Problem(str(place_of(root, "data")), "data", message)]
    return [Problem(str(place_of(root, f"data.{key}")), f"data.{key}", message) for key, message in found]


def model_problems(model: ModelSource, base: Path, root: Node) -> tuple[Path | None, list[Problem]]:
    """The teacher's folder where it is here, and what is wrong with the source."""
    try:
        here = looks_local(model.path, base)  # a local folder is checked without the network
        return (resolve_model(model, base=base) if here else peek_model(model, base=base)), []
    except OSError as error:
        message = f"cannot be read: {error.strerror} (got {model.path[:60]!r}); name a folder or a hub id"
    except InputError as error:
        message = str(error)
    return None, [Problem(str(place_of(root, "teacher.model")), "teacher.model", message)]


def label_problems(data: Data, written: tuple[str, Sequence[str]] | None, folder: Path, root: Node) -> list[Problem]:
    """Class names in another order, or others, than those that the fine-tuned teacher answers with."""
    try:
        teacher = teacher_labels(folder)
    except InputError as error:
        return [Problem(str(place_of(root, "teacher.model")), "teacher.model", str(error))]
    bins = tuple(data.label.bins) if isinstance(data.label, Label) and data.label.bins else None
    ours = tuple(data.labels) if data.labels else bins
    if teacher is None or ours is None or written is None or ours == teacher:
        return []
    key = written[0]
    names = ", ".join(teacher)
    if set(ours) == set(teacher):
        what = "is in another order than in the teacher's config.json"
        advice = f"write the classes in the order {names}"
    else:
        what = "differs from the classes in the teacher's config.json"
        advice = f"the teacher answers {names}; use these, or add teacher.finetune to train a new head"
    return [Problem(str(place_of(root, key)), key, f"{what} (got {', '.join(ours)}); {advice}")]
