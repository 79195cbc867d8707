"""A checkpoint as dynamic INT8 ONNX by optimum-onnx, in an environment of its own (optimum.txt).

    python optimum_int8.py CHECKPOINT OUT

Writes OUT/avx512_vnni/model.onnx and OUT/avx2/model.onnx: the library's export and its settings for these processors,
all as they come. Both have weights per channel of 8 bits; those for AVX2 are unsigned, whose products do not saturate.
Its optimizer cannot be put before: with onnxruntime 1.32 quantizing the optimized graph ends in "Unable to find data
type", as its settings have no DefaultTensorType.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from optimum.onnxruntime import ORTModelForSequenceClassification, ORTQuantizer
from optimum.onnxruntime.configuration import AutoQuantizationConfig


def main(checkpoint: Path, out: Path) -> None:
    model = ORTModelForSequenceClassification.from_pretrained(checkpoint, export=True)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for isa in ("avx512_vnni", "avx2"):
            settings = getattr(AutoQuantizationConfig, isa)(is_static=False)
            made = Path(folder) / isa
            ORTQuantizer.from_pretrained(folder).quantize(save_dir=made, quantization_config=settings)
            (out / isa).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made / "model_quantized.onnx", out / isa / "model.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
