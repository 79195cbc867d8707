"""The arithmetic of a training, and the accelerator that applies it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from compressor.device import native_bf16, open_device
from compressor.errors import InputError


def resolve_precision(precision: str, device: str) -> Literal["fp32", "bf16"]:
    """What a setting means on a device (`cpu` or `gpu`): auto is bf16 where that is computed natively, else fp32."""
    if precision == "auto":
        return "bf16" if native_bf16(device) else "fp32"
    return "bf16" if precision == "bf16" else "fp32"


@contextlib.contextmanager
def accelerator(device: str, precision: Literal["fp32", "bf16"]) -> Iterator[Accelerator]:
    """An Accelerator of this device and precision; whatever accelerator the process had before is put back after.

    accelerate keeps its state in class-wide dicts, so that a second Accelerator in a process silently has the
    device and refuses the precision of the first; here each training has its own.

    Raises: InputError for an unknown device, and where several processes were started: training uses one.
    """
    open_device(device)
    shared = (PartialState._shared_state, AcceleratorState._shared_state, GradientState._shared_state)
    before = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        made = Accelerator(cpu=device == "cpu", mixed_precision="bf16" if precision == "bf16" else "no")
        if made.num_processes > 1:
            raise InputError(
                f"training runs in one process, but {made.num_processes} were started; start it without torchrun"
            )
        yield made
    finally:
        for state, old in zip(shared, before, strict=True):
            state.clear()
            state.update(old)
