"""What the report tells of a prune stage, from the decisions that it wrote down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def pruning(stage_id: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What a prune stage left of each layer of its input, with the reason for each layer or half that went or stayed.

    No layer stands there where tokens alone went.

    Args:
        lines: of the stage's decisions.jsonl.
    Returns: None for another verb.
    """
    last = next((line for line in reversed(lines) if line["kind"] == "pruned"), None)
    tokens = _removed_tokens(lines)
    if last is None:
        return {"stage": stage_id, "layers": [], "removed_layers": [], "because": tokens} if tokens else None
    verdicts = [line for line in lines if line["kind"] == "layer"]
    first = next(line for line in lines if line["kind"] == "cut")["candidates"]
    layers, left = (
        _layers(last["chosen"], first, verdicts),
        {layer["layer"]: layer for layer in last["chosen"]["layers"]},
    )
    gone = [f"layer {layer['layer']}: {layer['because']}" for layer in layers if layer["removed"]]
    gone += [f"the {part} half of layer {number}" for number, part in _removed_halves(verdicts, left)]
    weighed = any(_part(one) == "whole" for one in verdicts)
    stayed = "no whole layer was worth removing" if weighed else "no whole layer was to be removed"
    width = last["chosen"].get("hidden")
    told = [last["because"], f"removed {'; '.join(gone)}" if gone else stayed, tokens]
    if width and width["kept"] < width["before"]:
        told.insert(1, f"{width['kept']} of {width['before']} hidden channels remain")
    because = "; ".join(part for part in told if part)
    removed = last["chosen"]["removed_layers"]
    return {"stage": stage_id, "layers": layers, "removed_layers": removed, "hidden": width, "because": because}


def _layers(
    chosen: Mapping[str, Any], scored: Sequence[Mapping[str, Any]], verdicts: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What is left of each layer of the input, with its scores before the first cut, and why."""
    left = {layer["layer"]: layer for layer in chosen["layers"]}
    scores = {one["layer"]: one for one in scored if "layer" in one}  # none where hidden channels were scored
    found: list[dict[str, Any]] = []
    for number, before in enumerate(chosen["before"]):
        kept = left.get(number, {"heads": [], "ffn": 0})
        found.append(
            {
                "layer": number,
                "heads": len(kept["heads"]),
                "kept_heads": kept["heads"],
                "heads_before": before["heads"],
                "head_scores": scores[number]["heads"] if scores else None,
                "score": scores[number]["score"] if scores else None,
                "ffn": kept["ffn"],
                "ffn_before": before["ffn"],
                "removed": number not in left,
                "because": _reasons(number, verdicts),
            }
        )
    return found


def _reasons(layer: int, verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Why a layer went or stayed, and its halves, by the last verdict on each."""
    told = {_part(one): one for one in verdicts if one["chosen"]["layer"] == layer}
    words = [told.pop("whole")["because"]] if "whole" in told else []
    for part, one in told.items():
        words.append(f"{part} half {'removed' if one['chosen']['removed'] else 'kept'}: {one['because']}")
    return "; ".join(words) or "whole layers were not to be removed"


def _removed_halves(
    verdicts: Sequence[Mapping[str, Any]], left: Mapping[int, Mapping[str, Any]]
) -> list[tuple[int, str]]:
    """The halves that went as one from layers that stay."""
    gone = sorted({(one["chosen"]["layer"], _part(one)) for one in verdicts if one["chosen"]["removed"]})
    counted = {"attention": "heads", "feed-forward": "ffn"}
    return [
        (layer, part) for layer, part in gone if layer in left and part in counted and not left[layer][counted[part]]
    ]


def _part(verdict: Mapping[str, Any]) -> str:
    """What a verdict is on: a whole layer, or its attention or feed-forward half."""
    return str(verdict["chosen"].get("part", "whole"))


def _removed_tokens(lines: Sequence[Mapping[str, Any]]) -> str:
    """How many tokens a prune stage removed and why, or why it kept them; empty where none were to go."""
    line = next((line for line in reversed(lines) if line["kind"] == "vocabulary"), None)
    if line is None:
        return ""
    back = next((one for one in lines if one["kind"] == "backtrack" and "vocabulary" in one["chosen"]), None)
    if back is not None:
        return f"all {back['chosen']['vocabulary']} tokens were kept, as {back['because']}"
    chosen, cost = line["chosen"], line["cost"]
    return (
        f"{chosen['removed']} of {chosen['of']} tokens removed, {cost['parameters']} parameters or "
        f"{cost['bytes'] / 1e6:.2f} MB in fp32: {line['because']}"
    )
