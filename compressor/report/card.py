"""The model card (README.md of final/) as the Hugging Face hub reads it: a YAML head, then what a user must know."""

from __future__ import annotations

from typing import Any

from compressor.report.markdown import escaped, table
from compressor.report.model import Report, SubjectRow
from compressor.report.table import HEADS, cells

METRIC_IDS = {"macro_f1": "f1", "worst_class_recall": "recall", "matthews": "matthews_correlation"}
"""The hub's names of our metrics, where they differ."""


def model_card(report: Report, *, best: str, base_model: str | None = None, labels: tuple[str, ...] = ()) -> str:
    """README.md of the finished model: head, use, figures beside the teacher, doubts.

    `best` is the subject that was deployed, `base_model` a hub id such as `org/name` (None leaves it out), `labels` the
    class names in the order of their ids.
    """
    row = report.subject(best)
    out = ["---", _head(report, row, base_model).rstrip(), "---", "", f"# {escaped(report.name)}", ""]
    out += [f"A compressed {escaped(report.task.get('kind', 'model'))} model ({escaped(row.precision)} ONNX).", ""]
    if labels:
        out += [f"Labels: {', '.join(escaped(label) for label in labels)}.", ""]
    out += [
        "## Use",
        "",
        "It runs with onnxruntime, tokenizers and numpy alone; one text a line in, one JSON a line out:",
    ]
    out += ["", "```sh", "pip install onnxruntime tokenizers numpy", "python predict.py FILE", "```", ""]
    out += ["## Figures", "", f"Verdict of its budget: **{report.verdict}**. Brackets hold 95 % intervals.", ""]
    shown = [one for one in report.subjects if one.engine == "onnxruntime" and "/" not in one.name]
    chosen = [one for one in shown if one.versus_teacher is None or one.name == best]
    out += table(HEADS, [cells(one) for one in chosen])
    machine = report.machine.get("cpu", "an unknown machine")
    out += [f"Times are of one row at a time on {escaped(machine)}.", ""]
    if report.doubts:
        out += ["## Doubts", "", *(f"- {escaped(doubt)}" for doubt in report.doubts), ""]
    return "\n".join(out)


def _head(report: Report, row: SubjectRow, base_model: str | None) -> str:
    import yaml

    kind = str(report.task.get("kind", "text-classification"))
    head: dict[str, Any] = {"library_name": "onnx", "pipeline_tag": kind, "tags": ["bert", "onnx", row.precision]}
    if base_model:
        head["base_model"] = base_model
    if row.metric is not None:
        metric = METRIC_IDS.get(row.metric.name, row.metric.name)
        head["metrics"] = [metric]
        split = "test" if report.data.get("test") else "select"
        result = {
            "task": {"type": kind},
            "dataset": {"name": report.name, "type": "custom", "split": split},
            "metrics": [{"type": metric, "name": row.metric.name, "value": round(row.metric.value, 6)}],
        }
        head["model-index"] = [{"name": report.name, "results": [result]}]
    return str(yaml.safe_dump(head, sort_keys=False, allow_unicode=True))
