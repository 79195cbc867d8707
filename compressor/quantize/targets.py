"""What the place where a model will run allows; loads nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.device import cpu_flags
from compressor.errors import InputError
from compressor.quantize.settings import EXACT_SUMS, Isa, RunsOn, Scheme


def need_torch(try_: Sequence[Scheme], target: RunsOn, *, of: Scheme = "dynamic") -> list[Scheme]:
    """The schemes that start from the safetensors of a model, not from its ONNX.

    Args:
        of: the scheme that mixed is made of.
    """
    needing: set[Scheme] = {"qat"}
    if target == "tensorrt":
        needing |= {"static", "mixed"} if of == "static" else {"static"}
    return [scheme for scheme in try_ if scheme in needing]


def reduced_range(isa: Isa | None, *, has_vnni: bool) -> bool:
    """Whether weights must be such that sums of two u8 x s8 products fit into 16 bits.

    Args:
        isa: of the processor that the model is for; None is this one.
        has_vnni: whether this one sums such products in 32 bits.

    >>> reduced_range("avx2", has_vnni=True), reduced_range(None, has_vnni=True)
    (True, False)
    """
    return isa not in EXACT_SUMS if isa is not None else not has_vnni


def check_target(try_: Sequence[Scheme], target: RunsOn, *, of: Scheme = "dynamic") -> None:
    """Nothing, where the schemes run on the target; InputError says what to do where they do not.

    Args:
        of: the scheme that mixed is made of.
    """
    if target == "cuda":
        wrong: list[Scheme] = [scheme for scheme in try_ if scheme != "weight_only"]
        if wrong:
            raise InputError(
                f"quantize.try: {', '.join(wrong)} cannot run on a target with device gpu: onnxruntime's CUDA provider "
                "has no INT8 kernels, so those products would run on the CPU; write export: {to: onnx, "
                "precision: fp16} (or bf16) instead of quantize, or give the target engine tensorrt and try: [static]"
            )
    if target == "tensorrt":
        fixed: set[Scheme] = {"static", "mixed"} if of == "static" else {"static"}
        wrong = [scheme for scheme in try_ if scheme not in fixed]
        if wrong:
            raise InputError(
                f"quantize.try: {', '.join(wrong)} cannot run on a target with engine tensorrt, which takes QDQ pairs "
                "with fixed ranges alone; write try: [static]"
            )


def check_keep(keep: str, target: RunsOn) -> None:
    """Nothing, unless the processor computes that precision slower than fp32 or not at all: then InputError."""
    if keep == "fp32" or target != "cpu":
        return
    if keep == "fp16" and cpu_flags() & {"asimdhp", "fphp"}:
        return
    why = (
        "onnxruntime multiplies no bf16 on a CPU" if keep == "bf16" else "this CPU multiplies no fp16: it would convert"
    )
    raise InputError(f"mixed.keep must be fp32 here (got {keep}): {why}; {keep} is for a target with engine tensorrt")
