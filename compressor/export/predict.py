#!/usr/bin/env python3
"""Classify texts with the model in this folder. Needs onnxruntime, tokenizers and numpy, nothing else.

    python predict.py reviews.txt          one text a line
    python predict.py reviews.jsonl        one JSON object a line, with the column(s) the model was trained on
    cat reviews.txt | python predict.py    the same from standard input

Writes one JSON object a line, in the order of the input: {"label": "positive", "scores": {"negative": 0.02, ...}},
where the scores are probabilities that sum to 1. Every input line gets an answer, an empty one too. The two texts of a
pair task stand in two columns of the JSON, or on one line with a tab between them. Input is UTF-8 with
LF or CRLF. It is JSON lines if the file's name ends in .jsonl, .ndjson or .json, or if the first line that is not blank
is a JSON object; --format decides otherwise. null is an empty text. Answers are written as they are made, so that the
program can stand in a pipe.

It exits with 0 when all lines were answered, and with 2 and a message when an input line or the folder is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

try:
    import numpy as np
    import onnxruntime
    import tokenizers
except ImportError as error:
    sys.exit(f"predict.py needs {error.name}; run: pip install onnxruntime tokenizers numpy")

HERE = Path(__file__).resolve().parent
JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
GRAPHS = {"int8": "model_quantized", "fp16": "model_fp16", "bf16": "model_bf16"}
"""Name of the graph below onnx/ by its precision, where it does not lie beside this file."""
EXACT = ("vnni", "amx", "arm64_dotprod", "arm64_i8mm")
"""Processors whose INT8 sums do not saturate: a file made for them needs slower sums on others."""
EXACT_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}


class InputError(Exception):
    """What is wrong with the input or the folder, and what to do."""


class Model:
    """The model of a folder, ready to answer."""

    def __init__(self, folder: Path, threads: int) -> None:
        """Open the files of `folder`; with `threads` 0 onnxruntime chooses how many."""
        require(folder, "compressor.json", "tokenizer.json")
        about = json.loads((folder / "compressor.json").read_text(encoding="utf-8"))
        hub = folder / "onnx" / f"{GRAPHS.get(about['precision'], 'model')}.onnx"
        graph = hub if hub.is_file() else folder / "model.onnx"
        require(folder, graph.relative_to(folder).as_posix())
        self.labels: list[str] = about["labels"]
        self.columns: list[str] = about["text"]
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(about["max_tokens"], strategy="longest_first")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if about.get("isa") in EXACT and not EXACT_FLAGS & cpu_flags():
            options.add_session_config_entry("session.x64quantprecision", "1")  # slower, and as it was tested
        self.session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self.inputs = [each.name for each in self.session.get_inputs()]

    def answer(self, texts: Sequence[str]) -> dict[str, Any]:
        """Label and probabilities for one text, or for the two of a pair."""
        row = self.tokenizer.encode(texts[0], texts[1] if len(texts) > 1 else None)
        arrays = {"input_ids": row.ids, "attention_mask": row.attention_mask, "token_type_ids": row.type_ids}
        feed = {name: np.array([arrays[name]], dtype=np.int64) for name in self.inputs}
        logits = self.session.run(["logits"], feed)[0][0].astype(np.float64)
        powers = np.exp(logits - logits.max())
        scores = powers / powers.sum()
        named = {label: round(float(score), 6) for label, score in zip(self.labels, scores, strict=True)}
        return {"label": self.labels[int(scores.argmax())], "scores": named}


def require(folder: Path, *names: str) -> None:
    """Nothing where these files are in `folder`; InputError names the first that is not."""
    for name in names:
        if not (folder / name).is_file():
            raise InputError(f"{folder} holds no {name}; predict.py must lie in the folder it was written to")


def cpu_flags() -> set[str]:
    """Instruction sets of the processor as Linux names them; empty where it does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line.split(":", 1)[1] for line in lines if line.startswith(("flags", "Features"))), "").split())


def read_lines(stream: BinaryIO) -> Iterator[str]:
    """The lines of a UTF-8 stream without their ends and without a byte order mark, as they come."""
    for number, raw in enumerate(stream, 1):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"line {number} is not UTF-8 (byte {error.start} of it); convert the input") from None
        if number == 1:
            line = line.removeprefix("\ufeff")
        yield line.removesuffix("\n").removesuffix("\r")


def is_object(line: str) -> bool:
    """Whether the line is one JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def from_text(line: str, number: int, columns: Sequence[str]) -> list[str]:
    """The text of a line, or the two of a pair with a tab between them."""
    if len(columns) == 1:
        return [line]
    texts = line.split("\t") if line.strip() else [""] * len(columns)
    if len(texts) != len(columns):
        raise InputError(f"line {number} must hold {' and '.join(columns)}, a tab between them (got {len(texts)})")
    return texts


def from_json(line: str, number: int, columns: Sequence[str]) -> list[str]:
    """The texts in a JSON object's columns; an empty line or null is an empty text."""
    if not line.strip():
        return [""] * len(columns)
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"line {number} is not JSON: {error}; for plain text use --format text") from None
    if not isinstance(row, dict):
        raise InputError(f"line {number} must be a JSON object with {', '.join(columns)} (got {line[:60]})")
    texts: list[str] = []
    for column in columns:
        if column not in row or not isinstance(row[column], str | None):
            raise InputError(f"line {number} must have a text in column {column!r}; its columns are {', '.join(row)}")
        texts.append(row[column] or "")
        if any("\ud800" <= character <= "\udfff" for character in texts[-1]):
            raise InputError(f"line {number} has half a character (a lone surrogate) in column {column!r}")
    return texts


def read_rows(lines: Iterable[str], form: str, columns: Sequence[str]) -> Iterator[list[str]]:
    """One list of texts a line; `form` is text, jsonl or auto, which looks at the first line that is not blank."""
    for number, line in enumerate(lines, 1):
        if form == "auto" and line.strip():
            form = "jsonl" if is_object(line) else "text"
        yield from_json(line, number, columns) if form == "jsonl" else from_text(line, number, columns)


def run(file: Path | None, form: str, threads: int) -> None:
    """Answer every line of `file`, or of standard input where it is None, on standard output."""
    model = Model(HERE, threads)
    if file is not None and form == "auto" and file.suffix.lower() in JSON_ENDINGS:
        form = "jsonl"
    out = sys.stdout.buffer
    with sys.stdin.buffer if file is None else file.open("rb") as stream:
        for texts in read_rows(read_lines(stream), form, model.columns):
            out.write(json.dumps(model.answer(texts), ensure_ascii=False).encode("utf-8") + b"\n")
            out.flush()


def main() -> int:
    """Exit code: 0 when all lines were answered, 2 when the input or the folder is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, help="texts or JSON lines; standard input unless given")
    parser.add_argument("--format", choices=("auto", "text", "jsonl"), default="auto", help="form of the input")
    parser.add_argument("--threads", type=int, default=0, help="threads to compute with; 0: as many as there are cores")
    given = parser.parse_args()
    try:
        run(given.file, given.format, given.threads)
    except (InputError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone: nothing more to say
            return 0
        print(f"predict.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
