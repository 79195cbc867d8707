"""What a large unlabelled pool costs: memory and time a row, at 10,000 and at 1,000,000 short texts.

    python benchmarks/pool.py [--rows 10000 1000000] [--rounds 3] [--steps 300]

Each measurement is a process of its own with one thread, in rounds that visit every size in turn; times are the
processor's, which others on the machine change less than the clock's. `rows` reads, cleans and tokenises the pool;
`distill` trains a tiny student of a tiny teacher for a fixed number of steps that draw half of their rows from it, from
opening the files to the saved model. Prints a line a measurement and writes benchmarks/results/pool.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULT = Path(__file__).resolve().parent / "results" / "pool.json"
LABELLED_ROWS = 4000
BATCH_ROWS = 32
ENDS = ("a", "e", "i", "o", "u", "al", "en", "ir", "os", "un", "ary", "etto")
WORDS = [first + end for first in "bdfgklmnprstv" for end in ENDS]
GOOD, BAD = WORDS[:20], WORDS[20:40]


def write_rows(folder: Path, rows: int) -> None:
    """`train.csv` and a pool of so many different texts of 5 to 15 words and a number."""
    draw = random.Random(0)
    with (folder / "train.csv").open("w", encoding="utf-8") as file:
        file.write("text,label\n")
        for number in range(LABELLED_ROWS):
            words = [*draw.choices(WORDS[40:], k=draw.randint(4, 14)), draw.choice((GOOD, BAD)[number % 2])]
            file.write(f"{' '.join(words)},{number % 2}\n")
    with (folder / "pool.txt").open("w", encoding="utf-8") as file:
        for number in range(rows):
            file.write(" ".join([*draw.choices(WORDS, k=draw.randint(5, 15)), *f"{number:07d}"]) + "\n")


def write_teacher(folder: Path) -> None:
    """A BERT of 2 layers, hidden 32, fine-tuned on train.csv beside it."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from compressor import Finetuner

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"0123456789"]
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(words), **shape)).save_pretrained(folder / "encoder")
    tokenizer = Tokenizer(models.WordPiece({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names).save_pretrained(
        folder / "encoder"
    )
    os.chdir(folder)
    train = {"epochs": 4.0, "learning_rate": 2e-3}
    Finetuner("encoder", data={"train": "train.csv", "max_tokens": 64}, train=train).fit(Path("teacher"))


def peak_bytes() -> int:
    """Largest resident memory of this process so far; Linux counts it in kibibytes, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def measure_rows(folder: Path) -> dict[str, float]:
    """Processor seconds to read, clean and tokenise the pool."""
    from compressor.data.encode import open_encoder
    from compressor.data.rows import open_data

    start = time.process_time()
    data = open_data({"train": "train.csv", "unlabelled": ["pool.txt"]}, base=folder)
    read = time.process_time()
    encoded = open_encoder(folder / "teacher", 64).encode(data.unlabelled.texts)
    done = time.process_time()
    return {"rows": len(encoded), "read_seconds": read - start, "tokenise_seconds": done - read}


def measure_distill(folder: Path, steps: int) -> dict[str, float]:
    """Processor seconds of so many training steps that draw from the pool, and of all from the files to the model."""
    os.chdir(folder)
    from compressor import Distiller, mix

    clock: list[float] = []

    def progress(what: str, _done: int, _total: int | None) -> None:
        if what == "distill":
            clock.append(time.process_time())

    start = time.process_time()
    distiller = Distiller(
        "teacher",
        {"layers": 1},
        data={"train": "train.csv", "unlabelled": ["pool.txt"], "max_tokens": 64},
        match=[{"of": "logits"}],
        mix=mix.unlabelled(0.5),
        train={"steps": steps, "batch_rows": BATCH_ROWS, "checkpoint": steps},
        progress=progress,
    )
    distiller.fit(Path(tempfile.mkdtemp(dir=folder)) / "student")
    whole = time.process_time() - start
    assert len(clock) == steps
    return {"rows": (steps - 1) * BATCH_ROWS, "step_seconds": clock[-1] - clock[0], "whole_seconds": whole}


def measured(part: str, folder: Path, steps: int) -> dict[str, float]:
    """One measurement in a fresh process, with its peak memory.

    The peak of a new process starts at its parent's, so this one stays small and makes the teacher in another too.
    """
    command = [sys.executable, __file__, "--measure", part, "--folder", str(folder), "--steps", str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest of a few values."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def summary(samples: dict[str, dict[str, list[dict[str, float]]]], sizes: list[str]) -> dict[str, dict[str, float]]:
    """For each cost the ratio of its median at the largest size to that at the smallest, and the growth of memory."""
    small, large = sizes[0], sizes[-1]
    told: dict[str, dict[str, float]] = {}
    for part, costs in {
        "rows": ("read_seconds", "tokenise_seconds"),
        "distill": ("step_seconds",),
    }.items():
        both = {size: samples[part][size] for size in (small, large)}
        growth = [one["peak_bytes"] - other["peak_bytes"] for one, other in zip(both[large], both[small], strict=True)]
        told[f"{part}: peak memory grows by, MB"] = spread([value / 1e6 for value in growth])
        each = {size: [sum(one[cost] for cost in costs) / one["rows"] for one in both[size]] for size in both}
        told[f"{part}: time a row, ratio"] = spread(
            [one / other for one, other in zip(each[large], each[small], strict=True)]
        )
        told[f"{part}: microseconds a row at {large}"] = spread([1e6 * value for value in each[large]])
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--measure", choices=["teacher", "rows", "distill"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure is not None:
        parts = {
            "teacher": lambda: write_teacher(given.folder) or {},
            "rows": lambda: measure_rows(given.folder),
            "distill": lambda: measure_distill(given.folder, given.steps),
        }
        print(json.dumps({**parts[given.measure](), "peak_bytes": peak_bytes()}))
        return
    sizes = [str(rows) for rows in sorted(given.rows)]
    samples = {part: {size: [] for size in sizes} for part in ("rows", "distill")}
    with tempfile.TemporaryDirectory(prefix="pool-") as place:
        for size in sizes:
            folder = Path(place) / size
            folder.mkdir()
            write_rows(folder, int(size))
            measured("teacher", folder, given.steps)
        for _round in range(given.rounds):
            for part, of_size in samples.items():
                for size in sizes:
                    of_size[size].append(measured(part, Path(place) / size, given.steps))
                    print(part, size, of_size[size][-1], flush=True)
    told = summary(samples, sizes)
    for name, value in told.items():
        print(f"{name}: {value['median']:.2f} ({value['low']:.2f} to {value['high']:.2f})")
    result = {
        "command": " ".join(["python benchmarks/pool.py", *sys.argv[1:]]),
        "rounds": given.rounds,
        "steps": given.steps,
        "labelled_rows": LABELLED_ROWS,
        "batch_rows": BATCH_ROWS,
        "machine": {"processor": platform.processor() or platform.machine(), "python": platform.python_version()},
        "load_average_after": os.getloadavg(),
        "summary": told,
        "samples": samples,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
