"""Which schemes, settings and places to run go together; loads nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from compressor.device import DEVICES, cpu_flags, cpu_isa, has_vnni
from compressor.errors import InputError
from compressor.quantize.settings import EXACT_SUMS, Calibrate, Choice, Isa, Mixed, Qat, RunsOn, Scheme, WeightOnly
from compressor.settings import Settings

USERS: dict[str, set[Scheme]] = {
    "calibrate": {"dynamic", "static", "mixed"},
    "mixed": {"mixed", "static"},
    "smooth": {"dynamic", "static", "mixed"},
    "qat": {"qat"},
    "weight_only": {"weight_only"},
}
"""Settings to the schemes that read them; static may be followed by mixed."""
USUAL: dict[str, Settings | None] = {
    "calibrate": Calibrate(),
    "mixed": Mixed(),
    "smooth": None,
    "qat": Qat(),
    "weight_only": WeightOnly(),
}
"""What they are where nothing is said."""
LIMITS = ("drop", "agreement")
"""Settings of mixed that say what passes where there is no gate."""


def check_choices(try_: Sequence[Scheme], *, choose: Choice, isa: Isa | None, target: RunsOn, device: str) -> None:
    """InputError for names that are none of those there are."""
    listed = not isinstance(try_, str) and list(try_)
    if not listed or any(name not in get_args(Scheme) for name in listed):
        raise InputError(f"try must list some of {', '.join(get_args(Scheme))} (got {try_!r})")
    for name, value, known in (
        ("choose", choose, get_args(Choice)),
        ("isa", isa, (None, *get_args(Isa))),
        ("target", target, get_args(RunsOn)),
        ("device", device, tuple(DEVICES)),
    ):
        if value not in known:
            raise InputError(f"{name} must be one of {', '.join(filter(None, known))} (got {value!r})")


def check_sums(isa: Isa | None, reduce_range: bool | None) -> None:
    """InputError where the two say different things of the sums."""
    if isa is not None and reduce_range is not None and reduce_range != reduced_range(isa, has_vnni=has_vnni()):
        raise InputError(
            f"reduce_range must be {not reduce_range} for isa {isa} (got {reduce_range}); leave it out, or give "
            "the isa whose sums you mean"
        )


def made_for(isa: Isa | None, *, reduce_range: bool) -> Isa | None:
    """The instructions that weights are right for, as compressor.json says it: those named, else this processor's.

    Weights for exact sums are for no processor without them, where they would saturate unseen; and those for sums of 16
    bits for none with exact ones, which would be asked for where they are slow: AVX2 in their place, on ARM None.
    """
    own = isa or cpu_isa()
    if reduce_range and own in EXACT_SUMS:
        return "avx2" if own in ("vnni", "amx") else None
    return own if reduce_range or own in EXACT_SUMS else "vnni"


def ranged(of: Scheme) -> set[Scheme]:
    """The schemes with ranges that were taken beforehand, where mixed is made of `of`."""
    return {"static", "mixed"} if of == "static" else {"static"}


def need_torch(try_: Sequence[Scheme], target: RunsOn, *, of: Scheme = "dynamic") -> list[Scheme]:
    """The schemes that start from the safetensors of a model, not from its ONNX.

    Args:
        of: the scheme that mixed is made of.
    """
    needing: set[Scheme] = {"qat"}
    if target == "tensorrt":
        needing |= ranged(of)
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
        wrong = [scheme for scheme in try_ if scheme not in ranged(of)]
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


def check_schemes(try_: Sequence[Scheme], target: RunsOn, mixed: Mixed, choose: Choice) -> None:
    """Nothing, where the target runs the schemes and what mixed may leave, and can be timed here; else InputError."""
    check_target(try_, target, of=mixed.of)
    if choose == "fastest" and target != "cpu":
        raise InputError(
            f"quantize.choose must be smallest or most_accurate for target {target} (got fastest): schemes are timed "
            "on this CPU, which says nothing of that target"
        )
    if {"mixed", "static"} & set(try_):  # static may be followed by mixed
        check_keep(mixed.keep, target)


def unused(try_: Sequence[Scheme], settings: Mapping[str, Settings | None], *, gate: bool) -> str | None:
    """What is wrong with schemes, or with settings that none of them reads, as they would change nothing; else None.

    Args:
        settings: `calibrate`, `mixed`, `smooth`, `qat` and `weight_only`, filled in.
        gate: whether one decides what passes; else limits do, and static may be followed by mixed.
    """
    if len(set(try_)) < len(try_):
        return f"try names a scheme twice (got {', '.join(try_)})"
    for name, schemes in USERS.items():
        if settings[name] != USUAL[name] and not schemes & set(try_):
            return f"{name} serves {' and '.join(sorted(schemes))} alone; add one to try or remove {name}"
    calibrate, mixed = settings["calibrate"], settings["mixed"]
    assert isinstance(calibrate, Calibrate)
    assert isinstance(mixed, Mixed)
    if calibrate.method != Calibrate().method and not ranged(mixed.of) & set(try_):
        return f"calibrate.method {calibrate.method} serves static alone; add static to try or remove the method"
    said = [name for name in Mixed.model_fields if getattr(mixed, name) != getattr(Mixed(), name)]
    for name in said:
        if "mixed" not in try_ and (gate or name in ("of", *LIMITS)):
            return f"mixed.{name} serves mixed alone{' where there is a gate' * gate}; add mixed to try or remove it"
        if gate and name in LIMITS:
            return f"mixed.{name} serves where there is no gate alone; remove it, as the gate decides"
    return None
