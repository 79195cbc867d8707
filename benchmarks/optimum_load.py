"""Do deployed folders open in optimum? Run by `make test-optimum`, whose second environment has optimum-onnx.

Folders are made here: a random model's and a fine-tuned one's (`--model`), as fp32 and INT8, flat and in layout hub,
with golden answers beside them. The other environment (`--python`) opens each with ORTModelForSequenceClassification
and AutoTokenizer, and gives its logits, which must be the golden ones. Exit code 1 where one differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

TOLERANCE = 1e-4
"""Largest difference of a logit: the same file in the same onnxruntime, fed by another tokenizer."""
PACKAGES = ("optimum-onnx", "optimum", "transformers", "onnxruntime", "torch")


def make(work: Path, model: Path | None) -> list[Path]:
    """The deployed folders, each with golden.json."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from model_folders import TEXTS, UNEVEN, data_of, write_classifier
    from tiny import write_tiny_bert

    from compressor.export.exporter import Exporter
    from compressor.quantize.quantizer import Quantizer
    from compressor.report.kept import write_golden

    tiny = write_tiny_bert(work / "tiny", labels=("bad", "good"))
    sources = {"uneven": write_classifier(work / "uneven", tiny, layers=UNEVEN)}
    if model is not None:
        sources["given"] = model
    made = []
    for name, source in sources.items():
        fp32 = Exporter(source).export(work / f"{name}-fp32-flat")
        int8 = Quantizer(source, data=data_of(TEXTS)).fit(work / f"{name}-int8-flat")
        made += [fp32, Exporter(fp32, layout="hub").export(work / f"{name}-fp32-hub")]
        made += [int8, Exporter(int8, layout="hub", fp32=fp32).export(work / f"{name}-int8-hub")]
    for folder in made:
        write_golden(folder)
    return made


def check(folder: Path) -> dict[str, Any]:
    """What optimum answers beside the golden answers; runs in the other environment."""
    import numpy as np
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer

    about = json.loads((folder / "compressor.json").read_text(encoding="utf-8"))
    golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))["rows"]
    quantized = {"subfolder": "onnx", "file_name": "model_quantized.onnx"}
    hub = (folder / "onnx").is_dir()
    where = quantized if hub and about["precision"] == "int8" else {}
    model = ORTModelForSequenceClassification.from_pretrained(folder, **where)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answers = []
    for row in golden:
        texts = row["text"] if isinstance(row["text"], list) else [row["text"]]
        inputs = tokenizer(*texts, truncation=True, max_length=about["max_tokens"], return_tensors="np")
        answers.append(model(**inputs).logits[0])
    wanted = np.array([row["logits"] for row in golden])
    found = np.array(answers)
    labels = [model.config.id2label[int(place)] for place in found.argmax(axis=1)]
    return {
        "folder": folder.name,
        "precision": about["precision"],
        "layout": "hub" if hub else "flat",
        "file": str(Path(model.model_path).relative_to(folder)),
        "rows": len(golden),
        "largest_difference": float(np.abs(found - wanted).max()),
        "labels_changed": sum(label != row["label"] for label, row in zip(labels, golden, strict=True)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, help="of the environment with optimum-onnx")
    parser.add_argument("--model", type=Path, help="a fine-tuned model folder with safetensors, checked too")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/optimum.json"))
    parser.add_argument("--check", type=Path, nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.check:
        found = [check(folder.resolve()) for folder in given.check]
        print(json.dumps({"versions": {name: version(name) for name in PACKAGES}, "folders": found}))
        return 0
    if given.python is None:
        parser.error("--python names no interpreter; make test-optimum gives that of the environment it builds")
    with tempfile.TemporaryDirectory(prefix="optimum-") as work:
        folders = make(Path(work), given.model)
        command = [str(given.python), str(Path(__file__).resolve()), "--check", *map(str, folders)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=work)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return 1
    result = json.loads(done.stdout.splitlines()[-1])
    result["command"] = "make test-optimum" + (" MODEL=FOLDER" if given.model else "")
    result["tolerance"] = TOLERANCE
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    wrong = 0
    for row in result["folders"]:
        right = row["largest_difference"] <= TOLERANCE and not row["labels_changed"]
        wrong += not right
        print(
            f"{'ok' if right else 'DIFFERS':<8} {row['folder']:<18} {row['file']:<26} {row['rows']} rows, logits "
            f"differ by {row['largest_difference']:.2g} at most"
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
