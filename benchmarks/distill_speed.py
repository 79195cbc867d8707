"""How fast a distillation is, beside TextBrewer 0.2.1.post1 and beside the matrix products of the machine.

    python benchmarks/distill_speed.py [--teacher FOLDER] [--work DIR] [--rows N] [--rounds N] [--accuracy]

Teacher: the 6-layer MiniLM of recipes/teacher-movies.yaml (made by it unless a folder is given). Student: its layers
2, 4 and 6, same width. Terms: soft cross-entropy of the logits at temperature 4, hidden states of layers 2:1 4:2 6:3
(ours layer-normalised, TextBrewer's raw). Rows: a sample of the movie snippets' train rows, one for all in a round.
Dropout 0, gradient clipped at 1, fused AdamW, linear warm-up and decay.

Ours is Distiller.fit over 5 epochs, from the start of the teacher's pass to the last step: pass, cache, steps, log and
checkpoints, without opening and saving models. TextBrewer's GeneralDistiller runs the teacher at every step, so a row
costs the same in each epoch: one pass over --peer-rows of the rows, from its third batch on, without its saving. It is
padded to the longest train row and to 128, at the best of batch sizes 16, 32, 64 (a first pass chooses).

Every measurement is a process of its own; the subjects of a round follow each other in a drawn order. The ceiling: the
FLOPs of the pass (one forward) and the steps (three) over real tokens alone, counting the linear layers, attention's
two products and the pooler, divided by the rate of the layers' own fp32 products, timed in our process before and
after. Measurements are kept in --result as they end: a stopped run goes on, and another setting starts anew.
--accuracy, a run of its own which may share the machine, trains all rows once with ours and with TextBrewer padded to
the longest row (padding to 128 computes the same but for rounding) at the batch size chosen before, and scores select.
It is kept in distill_accuracy.json beside the result and shown in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "distill_speed.json"
TEXTBREWER = "textbrewer==0.2.1.post1"
BATCH_SIZES = (16, 32, 64)
PADS = ("longest", "128")
PAIRS = ((2, 1), (4, 2), (6, 3))
EPOCHS, RATE, TEMPERATURE, HIDDEN_WEIGHT, BATCH_TOKENS = 5, 2e-4, 4.0, 0.5, 1024
WARM_BATCHES = 2


# ---- what runs in a process of its own -------------------------------------------------------------------------------


def sampled(rows: int | None, number: int) -> Any:
    """The movie snippets with so many train rows, drawn for that round, and nothing unlabelled."""
    from movies import movies

    from compressor.data.rows import Rows

    data = movies()
    order = np.random.default_rng([number + 1, 7]).permutation(len(data.train))
    chosen = order if rows is None else order[:rows]
    return replace(data, train=data.train.take([int(row) for row in chosen]), unlabelled=Rows((), ()), pools=())


def matmul_rate(seconds: float = 1.5) -> float:
    """FLOP a second of fp32 products: those that a step makes in one layer, each timed alone, its median taken.

    A layer has six linear parts (four 384 x 384, one each way between 384 and 1536); a step makes three products of
    each: the output, the gradient of the input and that of the weights.
    """
    import torch

    flops = took = 0.0
    parts = ((4, 384, 384), (1, 384, 1536), (1, 1536, 384))
    for count, inner, columns in parts:
        given, weights = torch.randn(BATCH_TOKENS, inner), torch.randn(columns, inner)
        down = torch.randn(BATCH_TOKENS, columns)
        for one, other in ((given, weights.t()), (down, weights), (down.t(), given)):
            times: list[float] = []
            end = time.perf_counter() + seconds / 9
            while time.perf_counter() < end or len(times) < 5:
                start = time.perf_counter()
                one @ other
                times.append(time.perf_counter() - start)
            flops += count * 2 * BATCH_TOKENS * inner * columns
            took += count * statistics.median(times)
    return flops / took


def forward_flops(lengths: np.ndarray, *, layers: int, width: int = 384, neurons: int = 1536) -> float:
    """FLOPs of one forward pass over rows of so many tokens each, without padding."""
    token = 2 * (4 * width * width + 2 * width * neurons)
    attention = 2 * 2 * width * lengths.astype(np.float64) ** 2
    return float(layers * (token * lengths.sum() + attention.sum()) + 2 * width * width * len(lengths))


def distiller(teacher: Path, data: Any, *, epochs: float, progress: Any) -> Any:
    """Our subject."""
    from compressor.data.settings import Mix
    from compressor.distill import match
    from compressor.distill.distiller import Distiller
    from compressor.model.settings import Student
    from compressor.train.settings import Train

    return Distiller(
        teacher,
        Student(layers=3),
        data=data,
        match=[
            match.logits("ce", temperature=TEMPERATURE),
            match.hidden("mse", map=" ".join(f"{t}:{s}" for t, s in PAIRS), weight=HIDDEN_WEIGHT),
        ],
        mix=Mix(unlabelled=None),
        train=Train(epochs=epochs, learning_rate=RATE, batch_tokens=BATCH_TOKENS, dropout=0.0),
        progress=progress,
    )


def run_ours(teacher: Path, settings: dict[str, Any], number: int) -> dict[str, Any]:
    """Seconds of pass and steps on the sample of a round, and what they were of."""
    from compressor.data.encode import open_encoder

    data = sampled(settings["rows"], number)
    events: list[tuple[str, int, float]] = []

    def progress(what: str, done: int, _total: int | None) -> None:
        events.append((what, done, time.perf_counter()))

    with tempfile.TemporaryDirectory() as folder:
        few = replace(data, train=data.train.head(64))
        distiller(teacher, few, epochs=1, progress=progress).fit(Path(folder) / "warm")
        before = matmul_rate()
        events.clear()
        distiller(teacher, data, epochs=EPOCHS, progress=progress).fit(Path(folder) / "model")
        after = matmul_rate()
    answers = [at for what, _, at in events if what == "teacher's answers"]
    steps = [at for what, _, at in events if what == "distill"]
    first = next(place for place, event in enumerate(events) if event[0] == "teacher's answers")
    start = answers[0] if events[first][1] == 0 else events[first - 1][2] if first else answers[0]
    lengths = open_encoder(teacher, data.max_tokens).encode(data.train.texts).lengths
    flops = EPOCHS * 3 * forward_flops(lengths, layers=3) + forward_flops(lengths, layers=6)
    seconds, rate = steps[-1] - start, (before + after) / 2
    return {
        "rows_per_second": EPOCHS * len(lengths) / seconds,
        "seconds": seconds,
        "pass_seconds": answers[-1] - start,
        "steps": len(steps),
        "tokens_per_row": float(lengths.mean()),
        "flops": flops,
        "matmul_gflops": [before / 1e9, after / 1e9],
        "share_of_ceiling": flops / rate / seconds,
    }


def textbrewer_models(teacher: Path, data: Any) -> tuple[Any, Any]:
    """The teacher, and the same student before training that ours starts from."""
    from compressor.model.encoders import load_model
    from compressor.model.settings import Student
    from compressor.model.states import set_dropout
    from compressor.model.student import make_student

    model = load_model(teacher, labels=data.labels, attention="sdpa")  # as transformers opens it for its users
    student = make_student(model, Student(layers=3), seed=17).requires_grad_(True)
    set_dropout(student, 0.0)
    return model, student


def textbrewer_rows(teacher: Path, data: Any, pad: str) -> Any:
    """The train rows as TextBrewer's users batch them: all padded to one length."""
    import torch
    from movies import movies

    from compressor.data.encode import open_encoder

    encoder = open_encoder(teacher, data.max_tokens)
    length = int(encoder.encode(movies().train.texts).lengths.max()) if pad == "longest" else int(pad)
    encoded = [list(row.ids)[:length] for row in encoder.tokenizer.encode_batch(list(data.train.texts))]
    ids = torch.full((len(encoded), length), encoder.pad_id)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(encoded):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    return [{"input_ids": one, "attention_mask": other} for one, other in zip(ids, mask, strict=True)]


def train_textbrewer(
    teacher: Path, settings: dict[str, Any], data: Any, *, pad: str, batch_rows: int, epochs: int
) -> tuple[Any, list[float]]:
    """The trained student, and when each batch began."""
    import torch
    from transformers import get_linear_schedule_with_warmup

    sys.path.insert(0, settings["textbrewer"])
    # it imports tensorboard's writer, which it does not use without a log_dir
    sys.modules["torch.utils.tensorboard"] = types.SimpleNamespace(SummaryWriter=None)  # type: ignore[assignment]
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

    model, student = textbrewer_models(teacher, data)
    rows = textbrewer_rows(teacher, data, pad)
    generator = torch.Generator().manual_seed(17)
    loader = torch.utils.data.DataLoader(rows, batch_size=batch_rows, shuffle=True, generator=generator)
    steps = len(loader) * epochs
    starts: list[float] = []

    def noted(batch: Any) -> Any:
        starts.append(time.perf_counter())
        return batch

    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        return {"logits": outputs.logits, "hidden": outputs.hidden_states, "inputs_mask": batch["attention_mask"]}

    with tempfile.TemporaryDirectory() as folder:
        taught = GeneralDistiller(
            TrainingConfig(device="cpu", output_dir=folder, ckpt_frequency=1, ckpt_epoch_frequency=epochs),
            DistillationConfig(
                temperature=TEMPERATURE,
                kd_loss_type="ce",
                kd_loss_weight=TEMPERATURE**2,  # its cross-entropy lacks the factor that ours has
                hard_label_weight=0,
                intermediate_matches=[
                    {"layer_T": t, "layer_S": s, "feature": "hidden", "loss": "hidden_mse", "weight": HIDDEN_WEIGHT / 3}
                    for t, s in PAIRS
                ],
            ),
            model,
            student,
            adaptor,
            adaptor,
        )
        with taught:
            taught.train(
                torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=0.01, fused=True),
                loader,
                num_epochs=epochs,
                scheduler_class=get_linear_schedule_with_warmup,
                scheduler_args={"num_warmup_steps": round(0.1 * steps), "num_training_steps": steps},
                max_grad_norm=1.0,
                batch_postprocessor=noted,
                output_hidden_states=True,
            )
    return student, starts


def run_textbrewer(teacher: Path, settings: dict[str, Any], number: int, *, pad: str, batch: int) -> dict[str, Any]:
    """Rows a second in one pass over the first rows of a round's sample, from the third batch to the last."""
    count = max(settings["peer_rows"] // batch, WARM_BATCHES + 2) * batch
    data = sampled(settings["rows"], number)
    texts = data.train
    while len(texts) < count:  # tiny trials alone
        texts = texts.take([*range(len(texts))] * 2)
    data = replace(data, train=texts.head(count))
    _, starts = train_textbrewer(teacher, settings, data, pad=pad, batch_rows=batch, epochs=1)
    kept = starts[WARM_BATCHES:]
    seconds = kept[-1] - kept[0]
    return {"rows_per_second": (len(kept) - 1) * batch / seconds, "seconds": seconds, "batch_rows": batch}


def run_accuracy(teacher: Path, settings: dict[str, Any], *, pad: str | None, batch: int) -> dict[str, Any]:
    """Accuracy on select after 5 epochs over all train rows, ours where there is no `pad`."""
    from compressor.data.encode import open_encoder
    from compressor.model.encoders import load_model
    from compressor.stage import silent
    from compressor.train.finetune import encoded_pool
    from compressor.train.scoring import pool_logits

    data = sampled(settings["rows"] if settings["trial"] else None, 0)
    if pad is None:
        out = Path(settings["work"]) / "accuracy" / "model"
        distiller(teacher, data, epochs=EPOCHS, progress=silent).fit(out, work=out.parent)
        model = load_model(out, labels=data.labels)
    else:
        model, _ = train_textbrewer(teacher, settings, data, pad=pad, batch_rows=batch, epochs=EPOCHS)
    pool = encoded_pool(data.select, open_encoder(teacher, data.max_tokens), "select")
    right = pool_logits(model, pool).argmax(1) == pool.targets
    return {"accuracy": float(right.mean()), "rows": len(right), "correct": int(right.sum())}


def work_as(subject: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """One measurement; called in its own process."""
    import torch

    torch.set_num_threads(settings["threads"])
    teacher, number = Path(settings["teacher"]), subject["round"]
    if subject["kind"] == "accuracy":
        return run_accuracy(teacher, settings, pad=subject["pad"], batch=subject["batch"])
    if subject["pad"] is None:
        return run_ours(teacher, settings, number)
    return run_textbrewer(teacher, settings, number, pad=subject["pad"], batch=subject["batch"])


# ---- what asks for the measurements ----------------------------------------------------------------------------------


class Kept:
    """The measurements made so far, in one file that is replaced after each."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        shown = {name: value for name, value in settings.items() if name not in ("work", "textbrewer", "teacher")}
        old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        same = old.get("settings") == shown
        self.found: dict[str, Any] = old if same else {"settings": shown, "samples": []}

    def get(self, subject: dict[str, Any]) -> dict[str, Any]:
        """The measurement of a subject, made unless it is there."""
        for sample in self.found["samples"]:
            if sample["subject"] == subject:
                return sample
        command = [sys.executable, str(Path(__file__).resolve()), "--as", json.dumps(subject)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.settings["threads"]), "HF_HUB_OFFLINE": "1"}
        with tempfile.TemporaryDirectory() as folder:
            answer = Path(folder) / "answer.json"
            command += ["--settings", json.dumps(self.settings), "--answer", str(answer)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{subject} failed:\n{done.stderr[-3000:]}")
            sample = {"subject": subject, **json.loads(answer.read_text()), "load_average": os.getloadavg()[0]}
        self.found["samples"].append(sample)
        self.write()
        shown = {name: sample[name] for name in ("rows_per_second", "share_of_ceiling", "accuracy") if name in sample}
        print(subject, {name: round(value, 3) for name, value in shown.items()}, flush=True)
        return sample

    def write(self) -> None:
        """Replace the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self.path)


def subject_of(kind: str, pad: str | None, batch: int, number: int) -> dict[str, Any]:
    """What a measurement is of; `pad` None is ours."""
    return {"kind": kind, "pad": pad, "batch": batch, "round": number}


def geometric(ratios: list[float]) -> dict[str, float | None]:
    """Geometric mean of ratios with its two-sided 95 % interval (t, on logarithms); None from a single one."""
    logs = np.log(ratios)
    half = stats.t.ppf(0.975, len(logs) - 1) * stats.sem(logs) if len(logs) > 1 else None
    ends = (None, None) if half is None else (float(np.exp(logs.mean() - half)), float(np.exp(logs.mean() + half)))
    return {"value": float(np.exp(logs.mean())), "low": ends[0], "high": ends[1]}


def summary(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Ratios and medians over the rounds."""
    ours = [each["ours"] for each in rounds]
    rows: dict[str, Any] = {}
    for pad in PADS:
        theirs = [each[pad] for each in rounds]
        pairs = zip(ours, theirs, strict=True)
        rows[f"textbrewer padded to {pad}"] = {
            "ours_over_it": geometric([one["rows_per_second"] / other["rows_per_second"] for one, other in pairs]),
            "rows_per_second": statistics.median(each["rows_per_second"] for each in theirs),
            "batch_rows": theirs[0]["batch_rows"],
        }
    return {
        "rounds": len(rounds),
        **rows,
        "share_of_ceiling": geometric([each["share_of_ceiling"] for each in ours]),
        "rows_per_second": statistics.median(each["rows_per_second"] for each in ours),
        "pass_share_of_time": statistics.median(each["pass_seconds"] / each["seconds"] for each in ours),
        "matmul_gflops": statistics.median(statistics.mean(each["matmul_gflops"]) for each in ours),
    }


def interval(value: dict[str, float | None], unit: str = "x") -> str:
    """A ratio with its interval."""
    if value["low"] is None:
        return f"{value['value']:.2f}{unit} (one round, no interval)"
    return f"{value['value']:.2f}{unit} ({value['low']:.2f} to {value['high']:.2f})"


def table(result: dict[str, Any], accuracy: dict[str, Any]) -> str:
    """The result in Markdown, ratio first."""
    lines = ["| subject | ours over it | rows/s (median) | select accuracy |", "|---|---|---|---|"]
    shown = {name: f"{100 * value['accuracy']:.1f} %" for name, value in accuracy.items()}
    lines.append(f"| ours | 1 | {result['rows_per_second']:.1f} | {shown.get('ours', 'not measured')} |")
    for pad in PADS:
        row = result[f"textbrewer padded to {pad}"]
        lines.append(
            f"| TextBrewer padded to {pad}, {row['batch_rows']} rows a batch | {interval(row['ours_over_it'])} | "
            f"{row['rows_per_second']:.1f} | {shown.get(pad, 'not measured')} |"
        )
    lines.append(
        f"\nShare of the ceiling: {interval(result['share_of_ceiling'], '')}, at {result['matmul_gflops']:.0f} GFLOP/s "
        f"of fp32 products; the teacher's pass takes {100 * result['pass_share_of_time']:.0f} % of the time."
    )
    return "\n".join(lines)


def teacher_folder(given: Path | None, work: Path) -> Path:
    """The teacher's model folder, made by the recipe unless given."""
    if given is not None:
        return given.resolve()
    run = work / "teacher"
    made = run / "stages" / "teacher" / "model"
    if not (made / "compressor.json").is_file():
        recipe = str(ROOT / "recipes" / "teacher-movies.yaml")
        subprocess.run([sys.executable, "-m", "compressor", recipe, "--out", str(run)], check=True)
    return made


def textbrewer_folder(work: Path) -> Path:
    """Where TextBrewer is installed, beside our libraries and not among them."""
    folder = work / "textbrewer"
    if not (folder / "textbrewer").is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), TEXTBREWER]
        subprocess.run(command, check=True)
    return folder


def measured(kept: Kept, rounds: int) -> tuple[list[dict[str, dict[str, Any]]], dict[str, int]]:
    """The rounds' measurements by subject, and TextBrewer's best batch size by padding."""
    best = {}
    for pad in PADS:
        speed = {
            size: kept.get(subject_of("choice", pad, size, -1))["rows_per_second"]
            for size in kept.settings["batch_sizes"]
        }
        best[pad] = max(speed, key=lambda size: speed[size])
    found = []
    for number in range(rounds):
        subjects = {"ours": subject_of("speed", None, 0, number)}
        subjects |= {pad: subject_of("speed", pad, best[pad], number) for pad in PADS}
        order = np.random.default_rng(number).permutation(sorted(subjects))
        samples = {str(name): kept.get(subjects[str(name)]) for name in order}
        found.append(samples)
    return found, best


def trained(kept: Kept, summary: dict[str, Any]) -> None:
    """Both trained on all rows, TextBrewer at the batch size of its fastest pass."""
    batch = summary["textbrewer padded to longest"]["batch_rows"]
    subjects = {
        "ours": subject_of("accuracy", None, 0, -1),
        "longest": subject_of("accuracy", "longest", batch, -1),
    }
    kept.found["accuracy"] = {name: kept.get(subject) for name, subject in subjects.items()}
    kept.write()
    for name, found in kept.found["accuracy"].items():
        print(name, f"{100 * found['accuracy']:.1f} % of {found['rows']} rows of select")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, help="model folder of the 6-layer MiniLM teacher")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "distill-speed")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--rows", type=int, default=1500, help="train rows of a round")
    parser.add_argument("--peer-rows", type=int, default=384, help="of them for TextBrewer")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=list(BATCH_SIZES))
    parser.add_argument("--accuracy", action="store_true", help="train each on all rows and score select")
    parser.add_argument("--trial", action="store_true", help="--accuracy on --rows rows, to see that it runs")
    parser.add_argument("--as", dest="subject", help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.subject:
        answer = work_as(json.loads(given.subject), json.loads(given.settings))
        given.answer.write_text(json.dumps(answer))
        return
    from compressor.bench.machine import fingerprint

    given.work.mkdir(parents=True, exist_ok=True)
    settings = {
        "rows": given.rows,
        "peer_rows": given.peer_rows,
        "threads": given.threads,
        "batch_sizes": given.batch_sizes,
        "epochs": EPOCHS,
        "trial": given.trial,
        "teacher": str(teacher_folder(given.teacher, given.work)),
        "textbrewer": str(textbrewer_folder(given.work)),
        "work": str(given.work.resolve()),
    }
    scores = given.result.with_name("distill_accuracy.json")
    if given.accuracy:
        trained(Kept(scores, settings), json.loads(given.result.read_text(encoding="utf-8"))["summary"])
        return
    kept = Kept(given.result, settings)
    rounds, _ = measured(kept, given.rounds)
    accuracy = json.loads(scores.read_text(encoding="utf-8"))["accuracy"] if scores.is_file() else {}
    kept.found |= {
        "command": "python benchmarks/distill_speed.py",
        "machine": fingerprint(),
        "summary": summary(rounds),
    }
    kept.write()
    print(table(kept.found["summary"], accuracy))


if __name__ == "__main__":
    main()
