"""Where a training stands, on disk: one safetensors file and one JSON file, replaced as a whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compressor.errors import InputError, StageError

SCHEMA = 1
STATE_FILE = "checkpoint.json"


@dataclass(frozen=True)
class Standing:
    """How far a training has come; all that a checkpoint says beside its tensors."""

    key: str
    """Digest of all that decides the weights: settings, seed, shapes, rows."""
    step: int = 0
    """Optimizer steps done."""
    epoch: int = 0
    """Epoch of the next batch, from 0."""
    position: int = 0
    """Place of the next batch in its epoch, from 0."""
    attempt: int = 1
    """Which try wrote it, from 1."""
    seconds: float = 0.0
    """Time spent in the steps that led here, over all attempts."""
    threads: int = 1
    """Threads of the arithmetic, on which its last bits depend."""
    best_score: float | None = None
    """Best score on `select` so far; None before the first."""
    best_step: int = 0
    """Step of the best score."""
    waited: int = 0
    """Epochs since the best score."""
    stopped: bool = False
    """True once early stopping has ended the training."""

    def with_(self, **changes: int | float | bool | None) -> Standing:
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones once; the tensors themselves, not copies."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def tensors_digest(module: nn.Module) -> str:
    """SHA-256 in hex of names, shapes and bytes of all parameters and buffers."""
    total = hashlib.sha256()
    for name, value in sorted(module_tensors(module).items()):
        total.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def copy_into(targets: Mapping[str, Tensor], values: Mapping[str, Tensor], *, what: str) -> None:
    """Write values into tensors of the same names and shapes; StageError names the first that does not fit."""
    for name in sorted(targets.keys() ^ values.keys()):
        raise StageError(f"{what}: tensor {name} is in the {'model' if name in targets else 'checkpoint'} only")
    with torch.no_grad():
        for name, target in targets.items():
            if target.shape != values[name].shape:
                raise StageError(f"{what}: {name} has shape {tuple(values[name].shape)}, not {tuple(target.shape)}")
            target.copy_(values[name])


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """Moments and step counts as `NAME/exp_avg`; a parameter that never had a gradient has none."""
    return {
        f"{name}/{slot}": value
        for parameter, name in names.items()
        for slot, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], values: Mapping[str, Tensor]
) -> None:
    """Put moments and step counts back, each on its parameter's device (step counts stay where AdamW keeps them)."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in values.items():
        name, slot = key.rsplit("/", 1)
        found.setdefault(name, {})[slot] = value
    fused = bool(optimizer.defaults.get("fused"))
    for parameter, name in names.items():
        if name in found:
            optimizer.state[parameter] = {
                slot: value.to(parameter.device) if value.dim() or fused else value.clone()
                for slot, value in found[name].items()
            }


def random_state() -> dict[str, Tensor]:
    """State of torch's generators, by device."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state |= {f"cuda{i}": value for i, value in enumerate(torch.cuda.get_rng_state_all())}
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Make torch's generators go on from `state`."""
    torch.set_rng_state(state["cpu"].cpu())
    cuda = [state[f"cuda{i}"].cpu() for i in range(len(state) - 1)]
    if cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(cuda)


def write_checkpoint(folder: Path, standing: Standing, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Replace the checkpoint in `folder`; a kill at any moment leaves the old one or the new one, both whole.

    Args:
        folder: made if missing; holds `step-N.safetensors` and checkpoint.json, which names it.
        standing: where the training is.
        groups: name to tensors by name; stored as `GROUP:NAME`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{standing.step}.safetensors"
    tensors = {
        f"{group}:{key}": value.detach().cpu().contiguous()
        for group, values in groups.items()
        for key, value in values.items()
    }
    partial = folder / f"{name}.partial"
    save_file(tensors, partial)
    _sync(partial)
    os.replace(partial, folder / name)
    state = folder / f"{STATE_FILE}.partial"
    state.write_text(json.dumps({"schema": SCHEMA, "tensors": name, **asdict(standing)}, indent=1), encoding="utf-8")
    _sync(state)
    os.replace(state, folder / STATE_FILE)
    _remove(path for path in folder.iterdir() if path.name not in (name, STATE_FILE))


def read_checkpoint(folder: Path, *, key: str) -> tuple[Standing, dict[str, dict[str, Tensor]]] | None:
    """The checkpoint in `folder`, or None where there is none.

    Raises: InputError when it belongs to another training (its key differs); StageError when it cannot be read.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        schema, name = state.pop("schema"), state.pop("tensors")
        standing = Standing(**state)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(f"{path} cannot be read ({error}); delete {folder} to train from the start") from error
    if schema != SCHEMA or standing.key != key:
        raise InputError(
            f"{folder} holds a checkpoint of another training (other settings, seed, rows, model or version); "
            "delete it to train from the start, or choose another work folder"
        )
    try:
        tensors = load_file(folder / name)
    except (OSError, SafetensorError) as error:
        raise StageError(
            f"{folder / name} cannot be read ({error}); delete {folder} to train from the start"
        ) from error
    groups: dict[str, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        group, _, tensor_name = full.partition(":")
        groups.setdefault(group, {})[tensor_name] = value
    return standing, groups


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
