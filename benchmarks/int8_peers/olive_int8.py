"""A checkpoint as dynamic INT8 ONNX by Olive, in an environment of its own (olive.txt).

    python olive_int8.py CHECKPOINT OUT

Writes OUT/dynamic/model.onnx: its conversion, its transformer optimization for BERT, its dynamic quantization, with
their defaults.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"


def main(checkpoint: Path, out: Path) -> None:
    from olive import run

    with tempfile.TemporaryDirectory() as folder:
        run(
            {
                "input_model": {
                    "type": "HfModel",
                    "model_path": str(checkpoint.resolve()),
                    "task": "text-classification",
                },
                "passes": {
                    "conversion": {"type": "OnnxConversion", "target_opset": 17},
                    "optimization": {"type": "OrtTransformersOptimization", "model_type": "bert"},
                    "quantization": {"type": "OnnxDynamicQuantization"},
                },
                "output_dir": f"{folder}/out",
                "cache_dir": f"{folder}/cache",
            }
        )
        (file,) = Path(folder, "out").rglob("*.onnx")
        (out / "dynamic").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, out / "dynamic" / "model.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
