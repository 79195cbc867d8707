"""A checkpoint as static INT8 by NNCF for OpenVINO, in an environment of its own (nncf.txt).

    python nncf_int8.py CHECKPOINT OUT CALIBRATION

CALIBRATION holds rows as token ids (jsonl). Writes OUT/static/model.xml with model.bin: OpenVINO's conversion of the
PyTorch model with free batch and length, then NNCF's quantization for transformers, with its defaults (300 rows).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nncf
import numpy as np
import openvino
import torch
from transformers import AutoModelForSequenceClassification


def main(checkpoint: Path, out: Path, calibration: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, attn_implementation="sdpa").eval()
    rows = [json.loads(line) for line in calibration.read_text(encoding="utf-8").splitlines()]
    inputs = [{name: np.array([ids], dtype=np.int64) for name, ids in row.items()} for row in rows]
    example = {name: torch.ones((2, 16), dtype=torch.int64) for name in inputs[0]}
    shapes = {name: [-1, -1] for name in inputs[0]}
    with torch.no_grad():
        converted = openvino.convert_model(model, example_input=example, input=shapes)
    made = nncf.quantize(converted, nncf.Dataset(inputs), model_type=nncf.ModelType.TRANSFORMER)
    (out / "static").mkdir(parents=True, exist_ok=True)
    openvino.save_model(made, out / "static" / "model.xml", compress_to_fp16=False)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
