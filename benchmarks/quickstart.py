"""What the quickstart takes and gives: wall time, a second run, and the deployed model scored without this package.

    python benchmarks/quickstart.py [--out DIR]

Runs recipes/quickstart.yaml in a new directory, and again. Then makes the 2,000 test rows from the package by itself
(SHA-256 of each text, ascending), lets final/predict.py answer them in a process in which torch, transformers and
compressor cannot be imported, and writes benchmarks/results/quickstart.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "quickstart.yaml"
RESULT = ROOT / "benchmarks" / "results" / "quickstart.json"
BLOCKED = (
    "import sys, runpy\n"
    "for name in ('torch', 'transformers', 'compressor'): sys.modules[name] = None\n"
    "sys.argv = ['predict.py']\n"
    "runpy.run_path('predict.py', run_name='__main__')\n"
)


def timed_run(out: Path) -> float:
    """Seconds of `compress quickstart.yaml`, as a user starts it."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "compressor", str(RECIPE), "--out", str(out)], check=True)
    return time.perf_counter() - start


def test_rows() -> list[tuple[str, str]]:
    """(text, label) of the 2,000 test rows, made from the package with the standard library alone."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*command, "--dest", folder, "vaderSentiment==3.3.2"], check=True)
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as outer:
            inside = next(name for name in outer.getnames() if name.endswith("hutto_ICWSM_2014.tar.gz"))
            with tarfile.open(fileobj=outer.extractfile(inside)) as inner:
                raw = inner.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt").read()
    rows = [line.rstrip("\r").split("\t") for line in raw.decode("utf-8").split("\n") if line.strip()]
    labelled = [
        (text, "positive" if float(rating) > 0.5 else "negative")
        for _, rating, text in rows
        if abs(float(rating)) > 0.5
    ]
    return sorted(labelled, key=lambda row: hashlib.sha256(row[0].encode()).hexdigest())[:2000]


def predict(final: Path, rows: list[tuple[str, str]]) -> tuple[float, float]:
    """Accuracy of final/predict.py on the rows, and the seconds it took, without torch, transformers and compressor."""
    lines = "".join(json.dumps({"text": text}) + "\n" for text, _ in rows)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED], cwd=final, input=lines, capture_output=True, text=True, check=True
    )
    seconds = time.perf_counter() - start
    answers = [json.loads(line)["label"] for line in done.stdout.splitlines()]
    assert len(answers) == len(rows)
    return sum(answer == label for answer, (_, label) in zip(answers, rows, strict=True)) / len(rows), seconds


def sentence(result: dict) -> str:
    """The README's sentence about a result of this script."""
    drop, ratio, machine = result["final_drop"], result["final_p50_ratio"], result["machine"]
    noise = result["noise"]
    return (
        f"On {result['threads']} cores of {machine['cpu']} it took {result['seconds']:.0f} s: "
        f"the teacher scores {100 * result['teacher_accuracy']['value']:.1f} % on 2,000 test rows, "
        f"the final model {100 * result['final_accuracy']['value']:.1f} % ({100 * drop['value']:.1f} pp less, "
        f"{100 * drop['low']:.1f} to {100 * drop['high']:.1f}), in {result['final_bytes'] / 1e6:.1f} MB and "
        f"{ratio['value']:.2f}x of the teacher's time a row ({ratio['low']:.2f} to {ratio['high']:.2f}; the "
        f"teacher beside itself: {noise['low']:.2f} to {noise['high']:.2f}), both on onnxruntime."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=None, help="an empty or missing directory")
    out = parser.parse_args().out or Path(tempfile.mkdtemp(prefix="quickstart-")) / "run"
    first = timed_run(out)
    second = timed_run(out)
    report = json.loads((out / "report" / "report.json").read_text())
    accuracy, seconds = predict(out / "final", test_rows())
    subjects = {subject["name"]: subject for subject in report["subjects"]}
    final = subjects["ship"]
    stages = {path.parent.name: json.loads(path.read_text())["seconds"] for path in out.glob("stages/*/stage.json")}
    result = {
        "command": "python benchmarks/quickstart.py",
        "seconds": round(first, 1),
        "threads": final["latency"][0]["threads"],
        "seconds_by_stage": stages,
        "second_run_seconds": round(second, 2),
        "load_average_after": os.getloadavg(),
        "machine": report["machine"],
        "verdict": report["verdict"],
        "teacher_accuracy": subjects["teacher"]["metric"],
        "final_accuracy": final["metric"],
        "final_drop": final["versus_teacher"]["drop"],
        "final_agreement": final["versus_teacher"]["agreement"],
        "final_p50_ratio": final["versus_teacher"]["latency_ratio"],
        "final_bytes": final["bytes"],
        "noise": report["noise"],
        "pruning": report["pruning"],
        "subjects": report["subjects"],
        "ladder": report["ladder"],
        "predict_py": {"rows": 2000, "accuracy": accuracy, "seconds": round(seconds, 2)},
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(sentence(result))


if __name__ == "__main__":
    main()
