"""Which schemes, settings and places to run go together; loads nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from compressor.device import cpu_flags, has_vnni
from compressor.errors import InputError
from compressor.quantize.settings import EXACT_SUMS, Calibrate, Choice, Isa, Mixed, Qat, RunsOn, Scheme, WeightOnly
from compressor.settings import Settings

USERS: dict[str, set[Scheme]] = {
    "mixed": {"mixed", "static"},
    "smooth": {"dynamic", "static", "mixed"},
    "qat": {"qat"},
    "weight_only": {"weight_only"},
}
"""Settings to the schemes that read them; static may be followed by mixed."""
USUAL: dict[str, Settings | None] = {"mixed": Mixed(), "smooth": None, "qat": Qat(), "weight_only": WeightOnly()}
"""What they are where nothing is said."""


def check_choices(try_: Sequence[Scheme], **chosen: str | None) -> None:
    """InputError for names that are none of those there are."""
    listed = not isinstance(try_, str) and list(try_)
    if not listed or any(name not in get_args(Scheme) for name in listed):
        raise InputError(f"try must list some of {', '.join(get_args(Scheme))} (got {try_!r})")
    for name, known in (("choose", Choice), ("isa", Isa), ("target", RunsOn)):
        if chosen[name] is not None and chosen[name] not in get_args(known):
            raise InputError(f"{name} must be one of {', '.join(get_args(known))} (got {chosen[name]!r})")


def check_sums(isa: Isa | None, reduce_range: bool | None) -> None:
    """InputError where the two say different things of the sums."""
    if isa is not None and reduce_range is not None and reduce_range != reduced_range(isa, has_vnni=has_vnni()):
        raise InputError(
            f"reduce_range must be {not reduce_range} for isa {isa} (got {reduce_range}); leave it out, or give "
            "the isa whose sums you mean"
        )


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


def check_schemes(try_: Sequence[Scheme], target: RunsOn, mixed: Mixed) -> None:
    """Nothing, where the target can run the schemes and the floats that mixed may leave; else InputError."""
    check_target(try_, target, of=mixed.of)
    if {"mixed", "static"} & set(try_):  # static may be followed by mixed
        check_keep(mixed.keep, target)


def unused(try_: Sequence[Scheme], settings: Mapping[str, Settings | None]) -> str | None:
    """What is wrong with settings that serve no scheme to be tried, as they would change nothing; None where all do.

    Args:
        settings: `calibrate`, `mixed`, `smooth`, `qat` and `weight_only`, filled in.
    """
    for name, schemes in USERS.items():
        if settings[name] != USUAL[name] and not schemes & set(try_):
            return f"{name} serves {' and '.join(sorted(schemes))} alone; add one to try or remove {name}"
    calibrate, mixed = settings["calibrate"], settings["mixed"]
    assert isinstance(calibrate, Calibrate)
    assert isinstance(mixed, Mixed)
    ranged = "static" in try_ or ("mixed" in try_ and mixed.of == "static")
    if calibrate.method != Calibrate().method and not ranged:
        return f"calibrate.method {calibrate.method} serves static alone; add static to try or remove the method"
    return None
