"""How near are times from the table that pruning to a latency goes by to times that are measured?

    python benchmarks/latency_table.py [--model FOLDER] [--threads N] [--engine NAME] [--shapes N] [--rounds N]

The model is the MiniLM that recipes/teacher-movies.yaml starts from, with a classifier that is not trained, as times do
not depend on weights; or the fine-tuned one of --model. The table is measured as `prune` measures it (nothing kept is
read), on 64 rows of `select` at their own lengths. Then the model is cut to random shapes: each layer keeps heads and
neurons of its own, two shapes lose whole layers, and all are written as they would run and timed in interleaved rounds
beside the model itself. For each: its share of the model's time by the table and as measured with its 95 % interval,
the error of the share, and the milliseconds. Asked for: no share more than 10 % off.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "latency_table.json"
MOST_PERCENT_OFF = 10.0
WHOLE = "the model itself"


def random_kept(sizes: Any, draw: random.Random, *, step: int, gone: int) -> Any:
    """What a random shape keeps: in every layer any number of heads and a multiple of `step` neurons; `gone` layers go.

    Of either kind one layer in six keeps none.
    """
    from compressor.model.surgery import Kept

    def some(count: int, by: int) -> tuple[int, ...]:
        kept = 0 if draw.random() < 1 / 6 else by * draw.randint(1, max(1, count // by))
        return tuple(sorted(draw.sample(range(count), min(count, kept))))

    layers = sorted(draw.sample(range(len(sizes.layers)), max(1, len(sizes.layers) - gone)))
    heads = tuple(some(layer.heads, 1) for layer in sizes.layers)
    return Kept(heads, tuple(some(layer.ffn, step) for layer in sizes.layers), tuple(layers))


def measured(model: Any, scene: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The table, and for each random shape what it predicts beside what is measured."""
    import numpy as np

    from compressor.bench.statistics import ratio_interval
    from compressor.model.parts import shapes
    from compressor.model.surgery import cut
    from compressor.prune.timing import measure_table, time_models

    def tell(what: str, done: int, total: int | None) -> None:
        print(f"\r{what} {done} of {total}   ", end="", file=sys.stderr, flush=True)

    began = time.monotonic()
    table = measure_table(model, scene, rounds=settings["rounds"], progress=tell)
    seconds = time.monotonic() - began
    draw, sizes = random.Random(settings["seed"]), shapes(model)
    made = {WHOLE: model}
    for number in range(settings["shapes"]):
        kept = random_kept(sizes, draw, step=table.step, gone=number % 3)
        made[f"shape {number + 1}"] = cut(model, kept)
    makers = {name: (lambda one=one: one) for name, one in made.items()}
    timed = time_models(makers, scene, rounds=settings["rounds"], progress=tell)
    whole = table.total(sizes.layers)
    lines = []
    for name, one in made.items():
        layers = shapes(one).layers
        found = ratio_interval(timed.p50[name], timed.p50[WHOLE])
        predicted = table.total(layers)
        lines.append(
            {
                "shape": name,
                "layers": [[layer.heads, layer.ffn] for layer in layers],
                "predicted_ms": predicted,
                "measured_ms": round(float(np.median(timed.p50[name])), 4),
                "predicted_share": round(predicted / whole, 4),
                "measured_share": {key: round(value, 4) for key, value in asdict(found).items()},
                "percent_off": round(100 * (predicted / whole / found.value - 1), 2),
                "p50_ms": [round(each, 4) for each in timed.p50[name]],
            }
        )
    return {
        "table": asdict(table),
        "table_seconds": round(seconds, 1),
        "conditions": dict(timed.conditions),
        "shapes": lines,
    }


def markdown(found: dict[str, Any]) -> str:
    """The result as two tables."""
    machine, table, settings = found["machine"], found["table"], found["settings"]
    worst = max(abs(line["percent_off"]) for line in found["shapes"])
    busy = [round(100 * one["busy_before"]) for one in (table["conditions"], found["conditions"])]
    lines = [
        "# Times by the table of layers, and measured",
        "",
        f"`{found['command']}` on {machine['cpu']}, {settings['engine']}, {settings['threads']} threads, fused fp32, "
        f"{table['conditions']['rows']} rows at their own lengths, {settings['rounds']} interleaved rounds.",
        f"The table took {found['table_seconds']:g} s; the sum of its parts is at most {100 * table['misfit']:.1f} % "
        f"off the {len(table['points'])} models it was fitted to; sizes in multiples of {table['step']}. Before the "
        f"two measurements other work kept {busy[0]} % and {busy[1]} % of the processors busy.",
        f"The largest error of a share is {worst:.1f} % (at most {MOST_PERCENT_OFF:g} % is asked for).",
        "",
        "| heads / neurons of each layer | predicted | measured (95 %) | error | predicted | measured |",
        "|---|---|---|---|---|---|",
    ]
    for line in found["shapes"]:
        share = line["measured_share"]
        layers = " ".join(f"{heads}/{neurons}" for heads, neurons in line["layers"])
        lines.append(
            f"| {layers} | {line['predicted_share']:.3f}x | {share['value']:.3f}x ({share['low']:.3f} to "
            f"{share['high']:.3f}) | {line['percent_off']:+.1f} % | {line['predicted_ms']:.3g} ms | "
            f"{line['measured_ms']:.3g} ms |"
        )
    lines += ["", "Milliseconds of one layer's halves by the table:", "", "| part | count | ms |", "|---|---|---|"]
    lines.append(f"| outside the layers | | {table['rest_ms']:.3g} |")
    for part, counts, times in (("heads", "heads", "attention_ms"), ("neurons", "neurons", "ffn_ms")):
        pairs = zip(table[counts], table[times], strict=True)
        lines += [f"| {part} | {count} | {ms:.3g} |" for count, ms in pairs]
    return "\n".join(lines) + "\n"


def opened(folder: Path | None) -> tuple[Any, Path]:
    """The classifier to cut and the folder of its tokenizer."""
    import torch
    from movies import encoder_folder

    from compressor.model.encoders import load_model

    torch.manual_seed(17)
    source = folder or encoder_folder()
    return load_model(source, labels=None if folder else ("negative", "positive")), source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, help="folder of a fine-tuned classifier; the recipe's encoder if left out"
    )
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--shapes", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=None, help="all that may be used unless given")
    parser.add_argument("--engine", choices=("onnxruntime", "torch", "openvino"), default="onnxruntime")
    parser.add_argument("--seed", type=int, default=17)
    given = parser.parse_args()
    from movies import movies

    from compressor.bench.machine import fingerprint
    from compressor.device import usable_threads
    from compressor.prune.latency_table import Place
    from compressor.prune.timing import scene_of

    model, folder = opened(given.model)
    settings = {"engine": given.engine, "threads": given.threads or usable_threads(), "shapes": given.shapes}
    settings |= {"rounds": given.rounds, "seed": given.seed}
    place = Place(settings["engine"], settings["threads"])
    found = measured(model, scene_of(folder, movies(), place, seed=given.seed), settings)
    command = "python benchmarks/latency_table.py" + (" --model FOLDER" if given.model else "")
    found = {"command": command, "machine": fingerprint(), "settings": settings, **found}
    given.result.parent.mkdir(parents=True, exist_ok=True)
    given.result.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    given.result.with_suffix(".md").write_text(markdown(found), encoding="utf-8")
    print("\n" + markdown(found))


if __name__ == "__main__":
    main()
