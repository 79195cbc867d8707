"""How much of the time of an INT8 model its INT8 products alone need, and which operators take the rest.

    python benchmarks/ceiling.py MODEL... [--tokens 16 32 128] [--threads 2] [--rounds 15] [--result FILE]

MODEL is a folder with an INT8 model.onnx and its compressor.json. For each number of tokens a graph of MatMulInteger
nodes alone is made, one for each product of the encoder's layers with a weight of its own, in the model's shapes
(query, key and value as one), and timed beside the model: a pinned process each, the same onnxruntime settings and
threads, rounds in a balanced order. The products' rate is the ceiling, in 10^9 multiplications and additions a second;
its time divided by the model's is the share of the ceiling that the model reaches (attention's own products of
activations, which are not INT8, count as time but not as work). 1,024 tokens show where the rate no longer rises.
Where the share is below what is wanted, onnxruntime's profile names the operators that take the time, in a session of
its own whose timers cost some microseconds a node.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from compressor.bench.isolation import Command, time_in_turn
from compressor.bench.machine import fingerprint
from compressor.bench.statistics import Interval, median_interval, p50_by_round, ratio_interval
from compressor.bench.timer import time_calls
from compressor.model.manifest import Shapes, read_manifest
from compressor.runtime.onnx import session
from compressor.runtime.timed import timed_environment

RESULT = Path(__file__).resolve().parent / "results" / "ceiling.json"
WANTED = {16: 0.6, 32: 0.7, 128: 0.85}
"""Share of the ceiling wanted at so many tokens."""
LARGE = 1024
"""Tokens at which the products' rate no longer rises."""
PROFILED_RUNS = 200


def products(shapes: Shapes) -> list[tuple[int, int]]:
    """Inputs and outputs of each INT8 product of the encoder, layer by layer.

    >>> from compressor.model.manifest import LayerShape
    >>> products(Shapes(384, (LayerShape(12, 32, 1536),), 100))
    [(384, 1152), (384, 384), (384, 1536), (1536, 384)]
    """
    found = []
    for layer in shapes.layers:
        width = layer.heads * layer.head_size
        found += [(shapes.hidden, 3 * width), (width, shapes.hidden)] if width else []
        found += [(shapes.hidden, layer.ffn), (layer.ffn, shapes.hidden)] if layer.ffn else []
    return found


def operations(shapes: Shapes, tokens: int) -> int:
    """Multiplications and additions of those products."""
    return 2 * tokens * sum(inputs * outputs for inputs, outputs in products(shapes))


def products_graph(shapes: Shapes) -> onnx.ModelProto:
    """u8 (tokens, inputs) times s8 (inputs, outputs), once for each product, each with weights of its own.

    Only the last product is an output: onnxruntime computes the others all the same, and copies none to the caller.
    """
    random, nodes, weights = np.random.default_rng(0), [], []
    widths = sorted({inputs for inputs, _ in products(shapes)})
    for place, (width, columns) in enumerate(products(shapes)):
        drawn = random.integers(-63, 64, size=(width, columns), dtype=np.int8)
        weights.append(numpy_helper.from_array(drawn, f"weight_{place}"))
        nodes.append(helper.make_node("MatMulInteger", [f"of_{width}", f"weight_{place}"], [f"product_{place}"]))
    inputs = [helper.make_tensor_value_info(f"of_{width}", TensorProto.UINT8, ["tokens", width]) for width in widths]
    last = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.INT32, ["tokens", products(shapes)[-1][1]])
    graph = helper.make_graph(nodes, "products", inputs, [last], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def feed_of(opened: Any, tokens: int) -> dict[str, np.ndarray]:
    """Random input for the products, or one row of so many tokens for a model."""
    random, feed = np.random.default_rng(0), {}
    for one in opened.get_inputs():
        if one.type == "tensor(uint8)":
            feed[one.name] = random.integers(0, 256, size=(tokens, one.shape[1]), dtype=np.uint8)
        elif one.name == "input_ids":
            feed[one.name] = random.integers(1000, 2000, size=(1, tokens))
        else:
            feed[one.name] = np.full((1, tokens), int(one.name == "attention_mask"), dtype=np.int64)
    return feed


def serve(file: Path, tokens: int, threads: int) -> None:
    """The process that is timed; it speaks the protocol of compressor/bench/process.py."""
    opened = session(file, threads=threads)
    feed = feed_of(opened, tokens)
    message: dict[str, Any] = {"ready": True}
    while True:
        print(json.dumps(message), flush=True)
        asked = json.loads(sys.stdin.readline() or '{"quit": true}')
        if asked.get("quit"):
            return
        taken = time_calls(lambda _row: opened.run(None, feed), asked["rows"], warmup=int(asked.get("warmup", 0)))
        message = {"ns": taken}


def command(name: str, file: Path, tokens: int, threads: int) -> Command:
    """What starts such a process."""
    script = (sys.executable, "-P", str(Path(__file__).resolve()), str(file))
    return Command(
        name, (*script, "--serve", "--tokens", str(tokens), "--threads", str(threads)), timed_environment(threads)
    )


def measured(folder: Path, tokens: list[int], *, threads: int, rounds: int) -> dict[str, Any]:
    """Times, rates and shares of one model, and profiles where it falls short."""
    shapes = read_manifest(folder).shapes
    with tempfile.TemporaryDirectory() as made:
        file = Path(made) / "products.onnx"
        onnx.save(products_graph(shapes), str(file))
        commands = [command(f"products {count}", file, count, threads) for count in (*tokens, LARGE)]
        commands += [command(f"model {count}", folder / "model.onnx", count, threads) for count in tokens]
        timing = time_in_turn(commands, rows=8, rounds=rounds, threads=threads)
    p50 = {one.name: p50_by_round(timing.rounds_of(one.name)) for one in commands}
    whole = {one.name: median_interval(list(timing.rounds_of(one.name).values())) for one in commands}
    found: dict[str, Any] = {"large": row(f"products {LARGE}", whole, operations(shapes, LARGE)), "tokens": {}}
    for count in tokens:
        share = ratio_interval(p50[f"products {count}"], p50[f"model {count}"])
        each = {name: row(f"{name} {count}", whole, operations(shapes, count)) for name in ("products", "model")}
        wanted = WANTED.get(count)
        short = wanted is not None and share.value < wanted
        profiled = profile(folder / "model.onnx", count, threads) if short else []
        found["tokens"][count] = {
            **each,
            "share": [round(one, 4) for one in (share.value, share.low, share.high)],
            "wanted": wanted,
            "profile": profiled,
        }
    return {**found, "busy_before": timing.busy_before, "load_before": timing.load_before}


def row(name: str, times: Mapping[str, Interval], work: int) -> dict[str, Any]:
    """Median milliseconds with its interval, and the rate."""
    one = times[name]
    return {
        "ms": [round(value, 4) for value in (one.value, one.low, one.high)],
        "gops": round(work / one.value / 1e6, 1),
    }


def profile(file: Path, tokens: int, threads: int) -> list[dict[str, Any]]:
    """Operators by the time they take in one run, the longest first."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        opened = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        feed = feed_of(opened, tokens)
        for _ in range(PROFILED_RUNS):
            opened.run(None, feed)
        events = json.loads(Path(opened.end_profiling()).read_text(encoding="utf-8"))
    return by_operator(events, PROFILED_RUNS)


def by_operator(events: list[dict[str, Any]], runs: int) -> list[dict[str, Any]]:
    """Microseconds a run, nodes and share of each operator in a profile of so many runs; the first tenth is warm-up.

    >>> event = {"name": "a_kernel_time", "dur": 4, "args": {"op_name": "Gelu"}}
    >>> by_operator([event, event], 2)
    [{'operator': 'Gelu', 'nodes': 1, 'microseconds': 4.0, 'share': 1.0}]
    """
    kernels = [one for one in events if one["name"].endswith("_kernel_time")]
    kept = kernels[len(kernels) // runs * (runs // 10) :]
    counted = runs - runs // 10
    taken: dict[str, list[int]] = defaultdict(list)
    for one in kept:
        taken[one["args"]["op_name"]].append(int(one["dur"]))
    total = sum(map(sum, taken.values()))
    found = [
        {
            "operator": name,
            "nodes": len(each) // counted,
            "microseconds": round(sum(each) / counted, 1),
            "share": round(sum(each) / total, 3),
        }
        for name, each in taken.items()
    ]
    return sorted(found, key=lambda one: -float(one["microseconds"]))


def markdown(result: dict[str, Any]) -> str:
    """The tables."""
    machine = result["machine"]
    out = [
        "# Share of the INT8 products' rate",
        "",
        f"`{result['command']}` on {machine['cpu']} ({' '.join(machine['flags'])}), {result['threads']} threads.",
        "",
        "| model | tokens | products ms | model ms | products 10^9/s | model 10^9/s | share of the ceiling | wanted |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, model in result["models"].items():
        for tokens, one in model["tokens"].items():
            products_ms, model_ms = one["products"], one["model"]
            out.append(
                f"| {name} | {tokens} | {shown(products_ms['ms'])} | {shown(model_ms['ms'])} | {products_ms['gops']} | "
                f"{model_ms['gops']} | {shown(one['share'])} | {one['wanted'] or ''} |"
            )
        large = model["large"]
        out.append(f"| {name} | {LARGE} | {shown(large['ms'])} | | {large['gops']} | | | |")
    for name, model in result["models"].items():
        for tokens, one in model["tokens"].items():
            if one["profile"]:
                out += ["", f"## Where the time goes: {name}, {tokens} tokens", ""]
                out += ["| operator | nodes | microseconds a run | share |", "|---|---|---|---|"]
                out += [
                    f"| {each['operator']} | {each['nodes']} | {each['microseconds']} | {100 * each['share']:.0f} % |"
                    for each in one["profile"]
                ]
    return "\n".join(out) + "\n"


def shown(interval: list[float]) -> str:
    """A value with its interval."""
    return "{:.3f} ({:.3f} to {:.3f})".format(*interval)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, nargs="+", default=list(WANTED))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.model[0], given.tokens[0], given.threads)
        return
    result: dict[str, Any] = {
        "command": "python benchmarks/ceiling.py MODEL...",
        "threads": given.threads,
        "rounds": given.rounds,
        "machine": fingerprint(),
        "models": {},
    }
    for folder in given.model:
        name = "/".join(folder.resolve().parts[-4:])
        result["models"][name] = measured(folder, given.tokens, threads=given.threads, rounds=given.rounds)
    given.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    given.result.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
    print(markdown(result))


if __name__ == "__main__":
    main()
