"""The INT8 files that the benchmark holds beside each other, ours and the peers', and what each answers.

Each peer runs in an environment of its own and gets the same checkpoint. All ONNX files are run by the same
onnxruntime with the same session, whatever made them, without the peers' own wrappers; OpenVINO's by a small process of
its own. All are fed the same token ids, row by row.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import venv
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from hashlib import file_digest
from pathlib import Path
from typing import Any

import numpy as np

from compressor.data.encode import Encoded, collate, open_encoder
from compressor.data.rows import DataSets
from compressor.export.exporter import Exporter
from compressor.export.folder import deploy
from compressor.model.manifest import read_manifest
from compressor.quantize.quantizer import Quantizer
from compressor.runtime.onnx import session

PEERS = Path(__file__).resolve().parent / "int8_peers"
CONSTRAINTS = PEERS.parent.parent / "constraints.txt"
CALIBRATION_ROWS = 300
"""NNCF's own default."""
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CI": "true", "OLIVE_DISABLE_TELEMETRY": "1"}
"""Of the peers' processes: no network; the last two switch telemetry off."""


@dataclass(frozen=True)
class Subject:
    """One INT8 file, or the fp32 one."""

    name: str
    peer: str | None
    """Environment of the peer that makes it; None for ours."""
    variant: str = ""
    """Folder that the peer's script writes it to."""
    rival: bool = True
    """Whether it is one of the peers that we are held against."""

    @property
    def slug(self) -> str:
        return self.name.replace(" ", "-")


FP32 = Subject("fp32", None, rival=False)
OURS = Subject("ours", None, rival=False)
OURS_VNNI = Subject("ours for vnni", None, rival=False)
PLAIN = Subject("plain dynamic", None, rival=False)
SUBJECTS = (
    FP32,
    OURS,
    OURS_VNNI,
    PLAIN,
    Subject("optimum avx512_vnni", "optimum", "avx512_vnni"),
    Subject("optimum avx2", "optimum", "avx2"),
    Subject("olive", "olive", "dynamic"),
    Subject("nncf openvino", "nncf", "static"),
)


def make_environment(work: Path, peer: str) -> None:
    """A virtual environment with the peer's libraries, torch as the project holds it."""
    place = work / "env" / peer
    if (place / "made").is_file():
        return
    pins = [line for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if line.startswith("torch==")]
    venv.create(place, with_pip=True)
    (place / "torch.txt").write_text("\n".join(pins) + "\n", encoding="utf-8")
    command = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "-c", str(place / "torch.txt")]
    subprocess.run([*command, "-r", str(PEERS / f"{peer}.txt")], check=True)
    (place / "made").touch()


def python_of(work: Path, peer: str) -> str:
    """The interpreter of a peer's environment."""
    return str(work / "env" / peer / "bin" / "python")


def run_peer(work: Path, peer: str, script: str, *arguments: Path | str, log: Path) -> None:
    """A script in a peer's environment; what it says goes to `log`, whose end is shown where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [python_of(work, peer), "-P", str(PEERS / script), *map(str, arguments)]
    with log.open("w", encoding="utf-8") as said:
        done = subprocess.run(command, stdout=said, stderr=subprocess.STDOUT, env={**os.environ, **ENVIRONMENT})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed; {log} ends:\n{log.read_text(encoding='utf-8')[-1500:]}")


def tokens_file(file: Path, encoded: Encoded) -> Path:
    """The rows as jsonl of token ids, as the peers' scripts read them; made once."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = (collate(encoded, [row], 0) for row in range(len(encoded.lengths)))
        lines = (json.dumps({name: array[0].tolist() for name, array in row.items()}) for row in rows)
        file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return file


def model_folder(place: Path, subject: Subject) -> Path:
    """Where a subject's model lies."""
    return place / "models" / subject.slug


def model_file(place: Path, subject: Subject) -> Path:
    """The file that is run."""
    return model_folder(place, subject) / ("model.xml" if subject.peer == "nncf" else "model.onnx")


def make_models(subjects: Iterable[Subject], rows: DataSets, *, work: Path, place: Path) -> None:
    """Every subject's model folder, from `place / checkpoint`; those that are there stay."""
    source = place / "checkpoint"
    missing = [one for one in subjects if not model_file(place, one).is_file()]
    for one in missing:
        if one.peer is None:
            print("making", one.name, flush=True)
            shutil.rmtree(model_folder(place, one), ignore_errors=True)
            OWN[one.name](source, model_folder(place, one), rows)
    for peer in dict.fromkeys(one.peer for one in missing if one.peer):
        print("making", peer, flush=True)
        made = place / "peers" / peer
        calibration = open_encoder(source, rows.max_tokens).encode(rows.train.texts[:CALIBRATION_ROWS])
        tokens = tokens_file(place / "calibration.jsonl", calibration)
        run_peer(work, peer, f"{peer}_int8.py", source, made, tokens, log=place / "logs" / f"{peer}.log")
        for one in missing:
            if one.peer == peer:
                adopt(made / one.variant, source, model_folder(place, one))


def adopt(made: Path, source: Path, out: Path) -> None:
    """A peer's model as a folder that can be run: with the checkpoint's tokenizer, or OpenVINO's two files alone."""
    if (made / "model.onnx").is_file():
        deploy(made / "model.onnx", source, out, manifest=replace(read_manifest(source), precision="int8"))
    else:
        shutil.copytree(made, out, dirs_exist_ok=True)


def make_fp32(source: Path, out: Path, rows: DataSets) -> None:
    """Our fused fp32 export."""
    Exporter(source, data=rows).export(out)


def make_ours(source: Path, out: Path, rows: DataSets) -> None:
    """Our INT8 for this processor, with all defaults."""
    Quantizer(source, data=rows, decide=lambda decision: print(decision.chosen, "-", decision.because)).fit(out)


def make_ours_vnni(source: Path, out: Path, rows: DataSets) -> None:
    """Our INT8 for a processor with VNNI, whatever this one has."""
    Quantizer(source, data=rows, isa="vnni").fit(out)


def make_plain(source: Path, out: Path, rows: DataSets) -> None:
    """Our fused fp32 graph through onnxruntime's dynamic quantization and nothing else: where a gain comes from."""
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from compressor.device import has_vnni

    fp32 = out.with_name(out.name + "-fp32")
    shutil.rmtree(fp32, ignore_errors=True)
    make_fp32(source, fp32, rows)
    quantize_dynamic(
        fp32 / "model.onnx",
        fp32 / "int8.onnx",
        per_channel=True,
        reduce_range=not has_vnni(),
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )
    deploy(fp32 / "int8.onnx", fp32, out, manifest=replace(read_manifest(fp32), precision="int8"))
    shutil.rmtree(fp32)


OWN: dict[str, Callable[[Path, Path, DataSets], None]] = {
    FP32.name: make_fp32,
    OURS.name: make_ours,
    OURS_VNNI.name: make_ours_vnni,
    PLAIN.name: make_plain,
}
"""Name of each subject that this project makes to the function that does; each takes (checkpoint, folder, rows)."""


def model_bytes(place: Path, subject: Subject) -> int:
    """Bytes of the model, with OpenVINO's weights file."""
    file = model_file(place, subject)
    parts = [file, file.with_suffix(".bin")] if subject.peer == "nncf" else [file]
    return sum(one.stat().st_size for one in parts)


def digest(place: Path, subject: Subject) -> str:
    """First 16 hex digits of the model's SHA-256."""
    file = model_file(place, subject)
    with (file.with_suffix(".bin") if subject.peer == "nncf" else file).open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()[:16]


def answers(
    subject: Subject, encoded: Encoded, tokens: Path, *, work: Path, place: Path, threads: int, precise: bool = False
) -> np.ndarray:
    """Logits of every row asked alone, shape (rows, classes).

    Args:
        encoded: the rows; `tokens`: the same as a file.
        precise: as a processor with VNNI answers; not for OpenVINO, which never saturates.
    """
    if subject.peer == "nncf":
        out, log = place / "openvino.npy", place / "logs" / "answers.log"
        options = ("--rows", tokens, "--threads", str(threads), "--logits", out)
        run_peer(work, "nncf", "openvino_timed.py", model_file(place, subject), *options, log=log)
        found = np.load(out)
        out.unlink()
        return found
    opened: Any = session(model_file(place, subject), threads=threads, spinning=False, precise=precise)
    names = [one.name for one in opened.get_inputs()]
    asked = (collate(encoded, [row], 0) for row in range(len(encoded.lengths)))
    return np.concatenate([opened.run(None, {name: row[name] for name in names})[0] for row in asked])


def timed_openvino(file: Path, tokens: Path, *, work: Path, threads: int) -> tuple[str, ...]:
    """The command line of the process in which an OpenVINO model is timed."""
    script = str(PEERS / "openvino_timed.py")
    options = ("--rows", str(tokens), "--threads", str(threads))
    return (python_of(work, "nncf"), "-P", script, str(file), *options)
