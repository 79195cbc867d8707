"""The `stages` of a recipe: from the tree to stage objects, and what each refers to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from compressor.errors import Problem
from compressor.recipe.document import Entry, Fields, Items, Mark, Node, Scalar
from compressor.recipe.limits import GATE_KEYS, fitting_limits
from compressor.recipe.merge import BESIDE_VERB, Loader, builtin_names, did_you_mean, stage_id
from compressor.recipe.problems import checked, given
from compressor.stage import ID_PATTERN, Stage
from compressor.stages.verbs import ONNX_ONLY, VERBS

TEACHER = "teacher"
"""Id that no stage may take."""


@dataclass(frozen=True)
class Written:
    """One stage as written: what could be made of it (None if nothing), its id and its tree."""

    stage: Stage | None
    id: str
    verb: str | None
    node: Fields

    @property
    def key(self) -> str:
        """Dotted path of the stage."""
        return f"stages.{self.id}"

    @property
    def body(self) -> Fields | None:
        """What stands under the verb."""
        entry = self.node.entries.get(self.verb) if self.verb else None
        return entry.node if entry is not None and isinstance(entry.node, Fields) else None


def read_stages(node: Node, labels: Sequence[str] | None) -> tuple[list[Written], list[Problem]]:
    """The stages in their order, and their problems; `labels` are the class names where they are known."""
    problems: list[Problem] = []
    if isinstance(node, Scalar) and node.unknown:
        return [], []
    if not isinstance(node, Items) or not node.nodes:
        advice = "write at least one, or leave stages out for the default ones"
        return [], [Problem(str(node.mark), "stages", f"must be a list of stages (got {given(node)}); {advice}")]
    found: list[Written] = []
    for place, item in enumerate(node.nodes):
        if isinstance(item, Scalar) and item.unknown:
            continue
        if not isinstance(item, Fields):
            message = f"must be a map such as {{id: slim, prune: {{...}}}} (got {given(item)})"
            problems.append(Problem(str(item.mark), f"stages.{place}", message))
            continue
        found.append(_read_stage(item, place, labels, problems))
    problems += _repeated_ids(found)
    return found, problems


def _read_stage(node: Fields, place: int, labels: Sequence[str] | None, problems: list[Problem]) -> Written:
    name = stage_id(node)
    key = f"stages.{name or place}"
    unknown = [word for word in node.entries if word not in VERBS and word not in BESIDE_VERB]
    misspelt = len(unknown) == 1 and len(node.entries) > 1 and "id" not in node.entries
    found = node.get("id")
    if name is None and not misspelt and not (isinstance(found, Scalar) and found.unknown):
        got = f" (got {given(found)})" if found else ""
        problems.append(Problem(str(node.mark), key, f"has no id{got}; add a name such as id: student"))
    if "drop" in node.entries:
        message = "drops a stage, but there is none to drop; remove it"
        problems.append(Problem(str(node.entries["drop"].mark), key, message))
    verb = _verb(node, key, problems)
    body = node.entries[verb].node if verb else None
    if verb is None or body is None:
        return Written(None, name or str(place), None, node)
    if isinstance(body, Scalar) and body.value is None:
        body = Fields({}, body.mark)
    if not isinstance(body, Fields):
        message = f"must be a map of settings (got {given(body)}); write {verb}: {{}} for the defaults"
        problems.append(Problem(str(body.mark), f"{key}.{verb}", message))
        return Written(None, name or str(place), verb, node)
    for misplaced in [word for word in ("id", "from", "gate") if word in body.entries]:
        message = f"belongs beside {verb}:, not inside it; move it one level up"
        problems.append(Problem(str(body.entries[misplaced].mark), f"{key}.{verb}.{misplaced}", message))
    body = body.without("id", "from", "gate")
    beside = {word: node.entries[word] for word in ("id", "from", "gate") if node.get(word) is not None}
    if isinstance(gate := node.get("gate"), Fields):
        fitting = fitting_limits(gate, GATE_KEYS, f"{key}.gate", labels, problems)
        beside["gate"] = Entry(fitting, beside["gate"].mark)
        if len(fitting.entries) < len(gate.entries) and set(fitting.entries) <= set(GATE_KEYS):
            del beside["gate"]  # its limits are noted as wrong; that none is left is no mistake of its own
    if name is None:
        beside["id"] = Entry(Scalar(f"stage{place}", node.mark), node.mark)
    merged = Fields({**beside, **body.entries}, body.mark)
    stage, errors = checked(VERBS[verb], merged, "")
    problems += [_prefixed(error, key, verb) for error in errors]
    problems += _gate_action_problem(stage, key, verb, node)
    return Written(stage, name or str(place), verb, node)


def _gate_action_problem(stage: Stage | None, key: str, verb: str, node: Fields) -> list[Problem]:
    """A gate whose `else` the verb cannot do."""
    if stage is None or stage.gate is None or stage.gate.otherwise in stage.gate_actions:
        return []
    gate = node.get("gate")
    assert isinstance(gate, Fields)
    action, can = stage.gate.otherwise, ", ".join(stage.gate_actions)
    message = f"is not something that {verb} can do (got {action}); it can {can}"
    return [Problem(str(gate.entries["else"].mark), f"{key}.gate.else", message)]


def _prefixed(error: Problem, key: str, verb: str) -> Problem:
    """A problem of a stage's settings with the path that the recipe shows."""
    first = error.key.split(".")[0]
    middle = key if first in ("id", "from", "gate") else f"{key}.{verb}"
    return Problem(error.where, f"{middle}.{error.key}" if error.key else middle, error.message)


def _verb(node: Fields, key: str, problems: list[Problem]) -> str | None:
    """The stage's one verb; None where it has none or several."""
    verbs = [word for word in node.entries if word in VERBS]
    unknown = [word for word in node.entries if word not in VERBS and word not in BESIDE_VERB]
    for word in unknown:
        mark = node.entries[word].mark
        if not verbs and len(unknown) == 1:
            message = f"is not a verb (got {word}); {did_you_mean(word, VERBS)}"
        else:
            message = f"is not a key of a stage (got {word}); {did_you_mean(word, ['id', 'from', 'gate', *VERBS])}"
        problems.append(Problem(str(mark), f"{key}.{word}", message))
    if len(verbs) > 1:
        message = f"has {len(verbs)} verbs (got {', '.join(verbs)}); make a stage of each"
        problems.append(Problem(str(node.entries[verbs[1]].mark), key, message))
    if not verbs and not unknown and "drop" not in node.entries:
        problems.append(Problem(str(node.mark), key, f"has no verb; add one of {', '.join(VERBS)}"))
    return verbs[0] if verbs else None


def _repeated_ids(stages: Sequence[Written]) -> list[Problem]:
    problems = []
    seen: dict[str, Mark] = {}
    for written in stages:
        node = written.node.get("id")
        if node is None:
            continue
        if written.id == TEACHER:
            message = "is reserved (got 'teacher'); the teacher stands above stages: choose another id"
            problems.append(Problem(str(node.mark), f"{written.key}.id", message))
        elif written.id in seen:
            message = f"is used twice (first in {seen[written.id]}); give each stage an id of its own"
            problems.append(Problem(str(node.mark), f"{written.key}.id", message))
        seen.setdefault(written.id, node.mark)
    return problems


# References


def reference_problems(stages: Sequence[Written], budget: Fields | None) -> list[Problem]:
    """References that name no earlier stage, and inputs that a verb cannot work on."""
    problems: list[Problem] = []
    every = [TEACHER, *(written.id for written in stages)]
    named = len(set(every)) == len(every) and all(each.stage and stage_id(each.node) for each in stages)
    for place, written in enumerate(stages):
        earlier = every[: place + 1]
        for key, node in _references(written):
            problems += _reference_problem(written.key + key, node, earlier, every, written.id)
        if named:
            problems += _input_problem(written, stages[:place])
    for key, node in _versus(budget):
        problems += _reference_problem(f"budget{key}", node, every, every, None)
    return problems


def _references(written: Written) -> list[tuple[str, Scalar]]:
    """Dotted path below the stage, and the id, of all that it names."""
    source = written.node.get("from")
    found = [(".from", source)] if isinstance(source, Scalar) else []
    if written.body is not None:
        found += _teacher_ids(f".{written.verb}.teacher", written.body.get("teacher"))
    gate = written.node.get("gate")
    return found + [(f".gate{key}", node) for key, node in _versus(gate)]


def _teacher_ids(key: str, node: Node | None) -> list[tuple[str, Scalar]]:
    """Dotted path and id of each teacher that is a stage; other texts are sources."""
    if isinstance(node, Items):
        return [found for place, each in enumerate(node.nodes) for found in _teacher_ids(f"{key}.{place}", each)]
    if isinstance(node, Fields):
        stage = node.get("stage")
        return [(f"{key}.stage", stage)] if isinstance(stage, Scalar) else []
    if isinstance(node, Scalar) and isinstance(node.value, str) and re.fullmatch(ID_PATTERN, node.value):
        return [(key, node)]
    return []


def _versus(limits: Node | None) -> list[tuple[str, Scalar]]:
    """Dotted path below a gate or budget, and the id, of each `vs`."""
    entries = limits.entries.items() if isinstance(limits, Fields) else ()
    found = [(f".{key}.vs", entry.node.get("vs")) for key, entry in entries if isinstance(entry.node, Fields)]
    return [(key, node) for key, node in found if isinstance(node, Scalar)]


def _reference_problem(
    key: str, node: Scalar, allowed: Sequence[str], every: Sequence[str], own: str | None
) -> list[Problem]:
    name = node.value
    if node.unknown or not isinstance(name, str) or name in allowed:
        return []
    if name == own:
        why = f"(got {name}, which is this stage itself); choose from {', '.join(allowed)}"
    elif name in every:
        why = f"(got {name}, which comes later); choose from {', '.join(allowed)}, or move {name} up"
    else:
        why = f"(got {name}); {did_you_mean(name, allowed)}"
        if re.search(r"\.teacher(\.\d+)?$", key) and not why.endswith("?"):
            why += f"; a folder is written ./{name}, a model of the hub {{model: {name}}}"
    what = "an earlier stage or teacher" if own else "a stage or teacher"
    return [Problem(str(node.mark), key, f"must name {what} {why}")]


def _input_problem(written: Written, before: Sequence[Written]) -> list[Problem]:
    """The problem of a verb that needs torch weights and is given INT8 or ONNX."""
    if written.verb is None or written.verb == "export" or not before:
        return []
    source = written.node.get("from")
    if written.verb == "distill" and source is None:
        return []  # made of its teachers: see recipe/teachers
    verbs = {earlier.id: earlier.verb for earlier in before}
    name = str(source.value) if isinstance(source, Scalar) else before[-1].id
    if verbs.get(name) not in ONNX_ONLY:
        return []
    usable = [TEACHER, *(earlier.id for earlier in before if earlier.verb not in ONNX_ONLY)]
    message = (
        f"reads {name}, whose output is ONNX without weights to {written.verb}; "
        f"put it before {name}, or add from: {usable[-1]}"
    )
    return [Problem(str(written.node.entries[written.verb].mark), f"{written.key}.{written.verb}", message)]


def default_stages(kind: str) -> Node:
    """The tree of the stages of the builtin recipe of a task kind."""
    loader = Loader()
    root = loader.builtin(kind if kind in builtin_names() else "text-classification")
    stages = root.get("stages") if root is not None else None
    assert stages is not None, f"builtin recipe of {kind} has no stages: {loader.problems}"
    return stages
