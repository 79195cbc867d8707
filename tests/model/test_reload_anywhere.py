"""A pruned folder opens in fresh processes in the three ways the README names, with the same logits."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import compressor
from compressor.model.encoders import load_model, model_logits, save_model
from compressor.model.manifest import Manifest
from compressor.model.parts import shapes
from compressor.model.surgery import Kept, cut

torch.set_num_threads(1)
PROBE = {
    "input_ids": torch.tensor([[2, 6, 9, 3], [2, 7, 3, 0]]),
    "attention_mask": torch.tensor([[1] * 4, [1, 1, 1, 0]]),
}
UNEVEN = Kept(heads=((0, 2, 3), ()), neurons=(tuple(range(0, 64, 3)), (1, 5, 63)), layers=(0, 1))
EVEN = Kept(heads=((0, 1, 2, 3),) * 2, neurons=(tuple(range(7, 39)),) * 2, layers=(0, 1))
WITHOUT_PACKAGE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "compressor":
            raise ModuleNotFoundError("compressor is not installed here")
sys.meta_path.insert(0, Missing())
try:
    import compressor
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("compressor must not be importable in this process")
"""
OPEN = """
import numpy, sys, torch
from transformers import AutoModelForSequenceClassification
torch.set_num_threads(1)
folder, out, trust = sys.argv[1], sys.argv[2], sys.argv[3] == "trust"
model = AutoModelForSequenceClassification.from_pretrained(folder, **({"trust_remote_code": True} if trust else {}))
probe = {name: torch.from_numpy(value) for name, value in numpy.load(out + ".probe.npz").items()}
with torch.no_grad():
    numpy.save(out, model.eval()(**probe).logits.numpy())
print(type(model).__module__)
"""


def save_pruned(folder: Path, source: Path, kept: Kept) -> tuple[Path, np.ndarray]:
    model = cut(load_model(source), kept)
    manifest = Manifest(labels=("bad", "good"), shapes=shapes(model))
    save_model(model, folder, tokenizer_from=source, manifest=manifest, probe=PROBE)
    return folder, model_logits(model, PROBE).numpy()


def open_elsewhere(folder: Path, tmp_path: Path, prelude: str, *, trust: bool) -> tuple[np.ndarray, str]:
    """Logits and the model's module from a fresh process that starts in an empty folder."""
    out = tmp_path / "logits.npy"
    np.savez(f"{out}.probe.npz", **{name: value.numpy() for name, value in PROBE.items()})
    command = [sys.executable, "-c", prelude + OPEN, str(folder), str(out), "trust" if trust else "plain"]
    settings = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "PYTHONPATH": str(Path(compressor.__file__).parents[1]),
    }
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=settings, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(out), done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("kept", "prelude", "trust", "module"),
    [
        (EVEN, WITHOUT_PACKAGE, False, "transformers.models.bert.modeling_bert"),
        (UNEVEN, "import compressor.auto\n", False, "compressor.model.pruned_modeling"),
        (UNEVEN, WITHOUT_PACKAGE, True, "transformers_modules"),
    ],
    ids=["plain for even shapes", "after import compressor.auto", "trust_remote_code without the package"],
)
def test_a_pruned_folder_opens_elsewhere_with_the_saved_logits(
    tmp_path: Path, tiny_classifier: Path, kept: Kept, prelude: str, trust: bool, module: str
):
    folder, logits = save_pruned(tmp_path / "model", tiny_classifier, kept)
    opened, where = open_elsewhere(folder, tmp_path, prelude, trust=trust)
    assert where.startswith(module)
    np.testing.assert_allclose(opened, logits, atol=1e-5, rtol=0)


def test_the_package_never_runs_the_modeling_file_of_a_folder(tmp_path: Path, tiny_classifier: Path):
    folder, logits = save_pruned(tmp_path / "model", tiny_classifier, UNEVEN)
    (folder / "pruned_modeling.py").write_text("raise SystemExit('this file was run')\n")
    np.testing.assert_allclose(model_logits(load_model(folder), PROBE).numpy(), logits, atol=1e-5, rtol=0)
