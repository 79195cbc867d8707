"""What serves a deployed folder: a model repository for Triton, or a small web service on FastAPI."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from compressor.errors import InputError
from compressor.export.settings import Server
from compressor.model.graph_file import FEEDS, MODEL_FILE, model_file, open_graph
from compressor.model.manifest import read_manifest

TRITON_NAME = "classifier"
"""Name of the model in Triton's repository."""
TRITON = """\
# For NVIDIA's Triton: tritonserver --model-repository DIR, with the folder that holds this one.
# Tokens go in and logits come out: make the tokens with tokenizer.json of the folder above, cut at {max_tokens}.
# Triton joins no requests here (max_batch_size 0), because it cannot pad rows of other lengths{alone}.
# Labels in the order of the logits: {labels}
name: "{name}"
backend: "onnxruntime"
max_batch_size: 0
input [
{inputs}
]
output [
  {{ name: "logits" data_type: TYPE_FP32 dims: [ -1, {classes} ] }}
]
"""
ALONE = ", and INT8 answers must not depend on\n# who else asks: send one row a request"
FASTAPI = '''\
"""The model in the folder above as a web service: POST /predict {"texts": ["..."]}, GET /health.

    pip install -r requirements.txt
    uvicorn app:app --host 127.0.0.1 --port 8000

A text of a pair task is a list of two. Every text gets {"label": ..., "scores": {...}} as predict.py gives it.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

FOLDER = Path(__file__).resolve().parents[2]
MOST_TEXTS = 256
"""Texts of one request at most."""


class Question(BaseModel):
    """What is asked."""

    texts: list[str | list[str]] = Field(min_length=1, max_length=MOST_TEXTS)


def open_model() -> Any:
    """The model, by predict.py of the folder above; as many threads as THREADS says, all that there are unless set."""
    spec = importlib.util.spec_from_file_location("predict", FOLDER / "predict.py")
    predict = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(predict)
    return predict.Model(FOLDER, int(os.environ.get("THREADS", "0")))


MODEL = open_model()
app = FastAPI(title="text classifier")


@app.get("/health")
def health() -> dict[str, Any]:
    """That it is up, and which labels it knows."""
    return {"status": "ok", "labels": MODEL.labels}


@app.post("/predict")
def predict(question: Question) -> list[dict[str, Any]]:
    """Label and probabilities of each text, in order."""
    answers = []
    for place, text in enumerate(question.texts):
        parts = [text] if isinstance(text, str) else text
        if len(parts) != len(MODEL.columns):
            wanted = " and ".join(MODEL.columns)
            raise HTTPException(422, f"text {place} must hold {wanted} (got {len(parts)} texts)")
        answers.append(MODEL.answer(parts))
    return answers
'''
REQUIREMENTS = "fastapi>=0.110\nuvicorn>=0.29\nonnxruntime\ntokenizers\nnumpy\n"


def write_triton(folder: Path) -> Path:
    """`serve/triton/classifier` with config.pbtxt and the graph as version 1; InputError where there is no graph."""
    file = model_file(folder)
    if file is None:
        raise InputError(f"{folder} holds no {MODEL_FILE} to serve; export the model first")
    manifest = read_manifest(folder)
    taken = [each.name for each in open_graph(file, weights=False).graph.input]
    lines = [f'  {{ name: "{name}" data_type: TYPE_INT64 dims: [ -1, -1 ] }}' for name in FEEDS if name in taken]
    home = folder / "serve" / "triton" / TRITON_NAME
    (home / "1").mkdir(parents=True)
    config = TRITON.format(
        name=TRITON_NAME,
        max_tokens=manifest.max_tokens,
        labels=", ".join(label.replace("\n", " ") for label in manifest.labels),
        alone=ALONE if manifest.asked_alone else "",
        inputs=",\n".join(lines),
        classes=len(manifest.labels),
    )
    (home / "config.pbtxt").write_text(config, encoding="utf-8")
    _link(file, home / "1" / MODEL_FILE)
    return home


def write_fastapi(folder: Path) -> Path:
    """`serve/fastapi` with app.py, which answers as predict.py of the folder does, and what it needs installed."""
    home = folder / "serve" / "fastapi"
    home.mkdir(parents=True)
    (home / "app.py").write_text(FASTAPI, encoding="utf-8")
    (home / "requirements.txt").write_text(REQUIREMENTS, encoding="utf-8")
    return home


def _link(source: Path, target: Path) -> None:
    """A second name of the file, which takes no room; a copy where the disk allows none."""
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)


SERVERS: dict[Server, Callable[[Path], Path]] = {"triton": write_triton, "fastapi": write_fastapi}
"""Name in the recipe to the function that writes it below a deployed folder."""
