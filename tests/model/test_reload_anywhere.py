"""A pruned folder of any family opens in fresh processes in the three ways the README names, with the same logits."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from model_families import write_family

import compressor
from compressor.model.encoders import load_model, model_logits, save_model
from compressor.model.families import FAMILIES
from compressor.model.manifest import Manifest, config_labels, read_config
from compressor.model.parts import shapes
from compressor.model.surgery import Kept, cut

torch.set_num_threads(1)
PROBE = {
    "input_ids": torch.tensor([[2, 6, 9, 3], [2, 7, 3, 0]]),
    "attention_mask": torch.tensor([[1] * 4, [1, 1, 1, 0]]),
}
UNEVEN = Kept(heads=((0, 2, 3), ()), neurons=(tuple(range(0, 64, 3)), (1, 5, 63)), layers=(0, 1))
EVEN = Kept(heads=((0, 1, 2, 3),) * 2, neurons=(tuple(range(7, 39)),) * 2, layers=(0, 1))
NARROW = Kept(UNEVEN.heads, UNEVEN.neurons, (0, 1), tuple(range(3, 29)))
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
from transformers import AutoModel, AutoModelForSequenceClassification
torch.set_num_threads(1)
out, trust, folders = sys.argv[1], sys.argv[2] == "trust", sys.argv[3:]
probe = {name: torch.from_numpy(value) for name, value in numpy.load(out + ".probe.npz").items()}
logits, states = [], []
for folder in folders:
    options = {"trust_remote_code": True} if trust else {}
    model = AutoModelForSequenceClassification.from_pretrained(folder, **options)
    encoder = AutoModel.from_pretrained(folder, **options)
    with torch.no_grad():
        logits.append(model.eval()(**probe).logits.numpy())
        states.append(encoder.eval()(**probe).last_hidden_state.numpy())
    print(type(model).__module__)
numpy.savez(out, logits=logits, states=states)
"""


@dataclass(frozen=True)
class Saved:
    folder: Path
    logits: np.ndarray
    states: np.ndarray
    """What the encoder gives alone."""


def save_pruned(folder: Path, source: Path, kept: Kept) -> Saved:
    model = cut(load_model(source), kept)
    manifest = Manifest(labels=config_labels(read_config(source)), shapes=shapes(model))
    save_model(model, folder, tokenizer_from=source, manifest=manifest, probe=PROBE)
    with torch.no_grad():
        states = model.base_model(**PROBE).last_hidden_state.numpy()
    return Saved(folder, model_logits(model, PROBE).numpy(), states)


def open_elsewhere(
    folders: Sequence[Path], tmp_path: Path, prelude: str, *, trust: bool
) -> tuple[dict[str, np.ndarray], Sequence[str]]:
    """Logits, states and the models' modules from a fresh process that starts in an empty folder."""
    out = tmp_path / "found.npz"
    np.savez(f"{out}.probe.npz", **{name: value.numpy() for name, value in PROBE.items()})
    command = [sys.executable, "-c", prelude + OPEN, str(out), "trust" if trust else "plain", *map(str, folders)]
    settings = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "PYTHONPATH": str(Path(compressor.__file__).parents[1]),
    }
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=settings, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(out), done.stdout.strip().splitlines()[-len(folders) :]


@pytest.mark.parametrize(
    ("kept", "prelude", "trust", "module"),
    [
        (EVEN, WITHOUT_PACKAGE, False, "transformers.models."),
        (UNEVEN, "import compressor.auto\n", False, "compressor.model.pruned_modeling"),
        (UNEVEN, WITHOUT_PACKAGE, True, "transformers_modules"),
        (NARROW, "import compressor.auto\n", False, "compressor.model.pruned_modeling"),
        (NARROW, WITHOUT_PACKAGE, True, "transformers_modules"),
    ],
    ids=[
        "plain for even shapes",
        "after import compressor.auto",
        "trust_remote_code without the package",
        "fewer channels after import compressor.auto",
        "fewer channels with trust_remote_code without the package",
    ],
)
def test_pruned_folders_of_every_family_open_elsewhere_with_the_saved_answers(
    tmp_path: Path, kept: Kept, prelude: str, trust: bool, module: str
):
    saved = [
        save_pruned(tmp_path / f"pruned-{family}", write_family(tmp_path / family, family), kept) for family in FAMILIES
    ]
    opened, where = open_elsewhere([each.folder for each in saved], tmp_path, prelude, trust=trust)
    assert len(opened["logits"]) == len(where) == 5
    assert all(each.startswith(module) for each in where)
    np.testing.assert_allclose(opened["logits"], [each.logits for each in saved], atol=1e-5, rtol=0)
    np.testing.assert_allclose(opened["states"], [each.states for each in saved], atol=1e-5, rtol=0)


def test_the_package_never_runs_the_modeling_file_of_a_folder(tmp_path: Path, tiny_classifier: Path):
    saved = save_pruned(tmp_path / "model", tiny_classifier, UNEVEN)
    (saved.folder / "pruned_modeling.py").write_text("raise SystemExit('this file was run')\n")
    np.testing.assert_allclose(model_logits(load_model(saved.folder), PROBE).numpy(), saved.logits, atol=1e-5, rtol=0)
