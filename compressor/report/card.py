"""The model card (README.md of final/) as the Hugging Face hub reads it: a YAML head, then what a user must know."""

from __future__ import annotations

from typing import Any

from compressor.report.markdown import escaped, fenced, table
from compressor.report.model import Report, SubjectRow
from compressor.report.table import HEADS, cells, chain, points, ratio

METRIC_IDS = {"macro_f1": "f1", "worst_class_recall": "recall", "matthews": "matthews_correlation"}
"""The hub's names of our metrics, where they differ."""


def model_card(report: Report, *, best: str, base_model: str | None = None, labels: tuple[str, ...] = ()) -> str:
    """README.md of the finished model: head, use, figures beside the teacher, how it was made, limits.

    `best` is the subject that was deployed, `base_model` a hub id such as `org/name` (None leaves it out), `labels` the
    class names in the order of their ids. Raises InputError where `best` is no subject.
    """
    row = report.subject(best)
    out = ["---", _head(report, row, base_model).rstrip(), "---", "", f"# {escaped(report.name)}", ""]
    out += [f"A compressed {escaped(report.task.get('kind', 'model'))} model ({escaped(row.precision)} ONNX).", ""]
    if labels:
        out += [f"Labels: {', '.join(escaped(label) for label in labels)}.", ""]
    out += _use() + _figures(report, row) + _making(report) + _limits(report, row)
    return "\n".join(out)


def _use() -> list[str]:
    command = "pip install onnxruntime tokenizers numpy\npython predict.py FILE"
    words = "It runs with onnxruntime, tokenizers and numpy alone; one text a line in, one JSON a line out:"
    return ["## Use", "", words, "", "```sh", command, "```", ""]


def _figures(report: Report, row: SubjectRow) -> list[str]:
    """The teacher and the deployed model, class by class where that is known, and simple baselines."""
    out = ["## Figures", "", f"Verdict of its budget: **{report.verdict}**. Brackets hold 95 % intervals.", ""]
    out += table(HEADS, [cells(one) for one in chain(report) if one.versus_teacher is None or one.name == row.name])
    machine = report.machine.get("cpu", "an unknown machine")
    out += [f"Times are of one row at a time on {escaped(machine)}, without tokenizing.", ""]
    if row.classes:
        found = [(one.label, one.rows, points(one.precision), points(one.recall)) for one in row.classes]
        out += table(("class", "rows", "precision %", "recall %"), found)
    sentences = [one.sentence for one in report.baselines if one.sentence]
    return out + [line for sentence in sentences for line in (escaped(sentence), "")]


def _making(report: Report) -> list[str]:
    """What each step gained and lost, and the command."""
    out = []
    if report.ladder:
        steps = [(step.step, ratio(step.speedup), points(step.drop)) for step in report.ladder]
        out += ["## How it was made", "", *table(("step", "speed-up over the step before", "drop (pp)"), steps)]
    command = report.reproduce.get("command")
    return out + (["To make it again:", "", *fenced(str(command))] if command else [])


def _limits(report: Report, row: SubjectRow) -> list[str]:
    """What changed texts cost, how far confidence is to be trusted, and the doubts."""
    said = [
        f"{one.what}: {points(one.score)} %, {points(one.drop)} pp below the same rows as they are."
        for one in row.perturbed
    ]
    if row.calibration:
        found = row.calibration
        said.append(
            f"Its confidence is off by {100 * found.error:.1f} pp on average; with logits divided by "
            f"{found.temperature:.3g}, by {100 * found.error_after:.1f} pp."
        )
    limits = ["## Limits", "", *(f"- {escaped(one)}" for one in said), ""] if said else []
    doubts = ["## Doubts", "", *(f"- {escaped(doubt)}" for doubt in report.doubts), ""] if report.doubts else []
    return limits + doubts


def _head(report: Report, row: SubjectRow, base_model: str | None) -> str:
    """The YAML between the dashes: model-index holds every metric with the rows that it was taken on."""
    import yaml

    kind = str(report.task.get("kind", "text-classification"))
    head: dict[str, Any] = {"library_name": "onnx", "pipeline_tag": kind, "tags": ["bert", "onnx", row.precision]}
    if base_model:
        head["base_model"] = base_model
    if row.metric is not None:
        first = row.metric.name
        every = {first: row.metric.value, **{name: value for name, value in row.metrics.items() if name != first}}
        head["metrics"] = [METRIC_IDS.get(name, name) for name in every]
        split = "test" if report.data.get("test") else "select"
        result = {
            "task": {"type": kind},
            "dataset": {"name": report.name, "type": "custom", "split": split},
            "metrics": [
                {"type": METRIC_IDS.get(name, name), "name": name, "value": round(value, 6)}
                for name, value in every.items()
            ],
        }
        head["model-index"] = [{"name": report.name, "results": [result]}]
    return str(yaml.safe_dump(head, sort_keys=False, allow_unicode=True))
