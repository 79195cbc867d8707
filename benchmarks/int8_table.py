"""The lines of the INT8 benchmark as markdown: one table for each model, what was asked for, and the folds together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from movies import gain, right_rows

from compressor.bench.statistics import Interval, ratio_interval

Line = Mapping[str, Any]
OURS, OURS_VNNI, FP32 = "ours", "ours for vnni", "fp32"
NOT_PEERS = (FP32, OURS, OURS_VNNI, "plain dynamic", "fp32/aa")
MOST_BYTES, MOST_DROP, LEAST_AGREEMENT, MOST_RATIO = 23e6, 0.3, 0.985, 0.8
HEAD = (
    "| file | MB | score % | beside fp32, pp | agrees % | with VNNI: score % | beside fp32, pp | agrees % | p50 ms | "
    "ours in its time | our score beside its, pp |\n|---|---|---|---|---|---|---|---|---|---|---|"
)
CAPTION = (
    "Score is accuracy on the test rows, each asked alone; intervals are 95 %, paired over rows. `with VNNI` is what "
    "a processor answers whose INT8 sums do not saturate (the same where this one has VNNI). p50: a pinned process "
    "each, batch 1, own lengths, rounds in a balanced order."
)


def table(lines: Sequence[Line]) -> str:
    """All tables; of lines about the same thing the last counts."""
    out = ["# INT8 beside its peers", "", "`python benchmarks/int8.py table`", "", CAPTION, ""]
    answers = [line for line in lines if line["what"] == "answers"]
    for data, layers in dict.fromkeys((line["data"], line["layers"]) for line in answers):
        here = [line for line in answers if (line["data"], line["layers"]) == (data, layers)]
        whole = last_by_subject(line for line in here if line["fold"] is None)
        if FP32 in whole:
            timed = [one for one in lines if one["what"] == "timing"]
            timed = [one for one in timed if (one["data"], one["layers"]) == (data, layers)]
            out += model_part(data, layers, whole, timed[-1] if timed else None)
        folds = {
            fold: last_by_subject(line for line in here if line["fold"] == fold)
            for fold in sorted({line["fold"] for line in here if line["fold"] is not None})
        }
        if folds:
            out += folds_part(data, layers, folds)
    return "\n".join(out) + "\n"


def last_by_subject(lines: Iterable[Line]) -> dict[str, Line]:
    """The last line of each subject."""
    return {line["subject"]: line for line in lines}


def model_part(data: str, layers: int, answers: Mapping[str, Line], timing: Line | None) -> list[str]:
    """The table of one model and what was asked for."""
    rows = answers[FP32]["rows"]
    out = [f"## {data}, {layers} layers, {rows} test rows", ""]
    if timing is not None:
        out += [conditions(timing), ""]
    out.append(HEAD)
    out += [row_of(name, answers, timing) for name in answers]
    return [*out, "", *asked(answers, timing), ""]


def conditions(timing: Line) -> str:
    """When and on what it was timed."""
    machine, graded = timing["machine"], timing["quality"]
    again = interval_of(timing, "fp32/aa", FP32)
    return (
        f"Timed {timing['at']} on {machine['cpu']} ({' '.join(machine['flags'])}), {timing['threads']} threads, "
        f"{timing['rounds']} rounds, rows of {', '.join(f'{one:.0f}' for one in timing['tokens'])} tokens (10, 50, "
        f"90 %); quality {graded['grade']}: {'; '.join(graded['because'])}. fp32 beside itself {ratio(again)}."
    )


def row_of(name: str, answers: Mapping[str, Line], timing: Line | None) -> str:
    """One file's line of the table."""
    line, fp32, ours = answers[name], answers[FP32], answers.get(OURS)
    cells = [name, f"{line['bytes'] / 1e6:.1f}", *scores_of(line, fp32), *scores_of(exact(line), fp32)]
    timed = timing is not None and name in timing["median_ms"]
    cells.append("{:.2f} ({:.2f} to {:.2f})".format(*timing["median_ms"][name]) if timed and timing else "")
    compared = ours is not None and name not in (OURS, OURS_VNNI)
    cells.append(ratio(interval_of(timing, OURS, name)) if compared and timed and timing else "")
    cells.append(points(gain_of(line, ours)) if compared and ours is not None else "")
    return "| " + " | ".join(cells) + " |"


def scores_of(line: Line, fp32: Line) -> list[str]:
    """Score, difference from fp32 and agreement as cells; of fp32 itself the score alone."""
    if line is fp32:
        return [f"{100 * line['accuracy']:.2f}", "", ""]
    cells = [100 * line["accuracy"], 100 * line["agreement"]]
    return [f"{cells[0]:.2f}", points(gain_of(fp32, line)), f"{cells[1]:.2f}"]


def exact(line: Line) -> Line:
    """What a processor with VNNI answers, with the rows counted."""
    return line.get("exact") or line


def gain_of(before: Line, after: Line) -> tuple[float, float, float]:
    """Points by which one scores more than the other, with its interval."""
    return gain(right_rows(before, before["rows"]), right_rows(after, after["rows"]))


def points(found: tuple[float, float, float]) -> str:
    """A difference in points."""
    return "{:+.2f} ({:+.2f} to {:+.2f})".format(*found)


def ratio(found: Interval) -> str:
    """A ratio of times."""
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def interval_of(timing: Line, subject: str, reference: str) -> Interval:
    """Ratio of two subjects' times, paired by round."""
    return ratio_interval(timing["p50_ms"][subject], timing["p50_ms"][reference])


def asked(answers: Mapping[str, Line], timing: Line | None) -> list[str]:
    """What was asked for, and whether it holds: of our file for this processor, and of that for VNNI."""
    out = []
    for name, where in ((OURS, "on this processor"), (OURS_VNNI, "with VNNI")):
        if name not in answers:
            continue
        line = exact(answers[name]) if name == OURS_VNNI else answers[name]
        size, fall = answers[name]["bytes"], 0.0 - gain_of(answers[FP32], line)[0]
        held = (size <= MOST_BYTES, round(fall, 6) <= MOST_DROP, line["agreement"] >= LEAST_AGREEMENT)
        words = (
            f"{size / 1e6:.1f} MB of at most {MOST_BYTES / 1e6:.0f}",
            f"{fall:.2f} pp below fp32 of at most {MOST_DROP}",
            f"{100 * line['agreement']:.2f} % agreement of at least {100 * LEAST_AGREEMENT:.1f}",
        )
        out.append(f"- {where}: " + "; ".join(f"{word}: {yes(one)}" for word, one in zip(words, held, strict=True)))
    if timing is not None and OURS in answers:
        out.append(beside_best(answers, timing))
    return out


def beside_best(answers: Mapping[str, Line], timing: Line) -> str:
    """Our time and score beside those of the fastest peer."""
    peers = {name: one[0] for name, one in timing["median_ms"].items() if name not in NOT_PEERS}
    best = min(peers, key=lambda name: peers[name])
    found = interval_of(timing, OURS, best)
    score = gain_of(answers[best], answers[OURS])
    return (
        f"- beside {best}, the fastest peer: p50 {ratio(found)} of at most {MOST_RATIO}: "
        f"{yes(found.value <= MOST_RATIO)}; "
        f"score {points(score)} pp, equal or better: {yes(score[0] >= 0)}"
    )


def yes(held: bool) -> str:
    """Whether it holds."""
    return "yes" if held else "no"


def folds_part(data: str, layers: int, folds: Mapping[int, Mapping[str, Line]]) -> list[str]:
    """Out-of-fold scores: every row is answered by the training that did not see it."""
    names = [name for name in next(iter(folds.values())) if all(name in one for one in folds.values())]
    lines = {name: [one[name] for one in folds.values()] for name in names}
    counts = np.array([one[FP32]["rows"] for one in folds.values()], dtype=float)
    out = [
        f"## {data}, {layers} layers, out of fold ({len(folds)} folds, {counts.sum():.0f} rows)",
        "",
        "| file | score % | beside fp32, pp | agrees % | with VNNI: score % | beside fp32, pp | agrees % |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        cells = [name]
        for found in (lines[name], [exact(line) for line in lines[name]]):
            agreed = np.average([line["agreement"] for line in found], weights=counts)
            right = all_right(found)
            cells += [f"{100 * right.mean():.2f}", points(gain(all_right(lines[FP32]), right)), f"{100 * agreed:.2f}"]
        out.append("| " + " | ".join(cells) + " |")
    return [*out, ""]


def all_right(lines: Iterable[Line]) -> np.ndarray:
    """Which rows of all folds were right, one fold after the other."""
    return np.concatenate([right_rows(line, line["rows"]) for line in lines])
