"""What a verb's options mean, and errors in the options' own words."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from compressor.errors import InputError

if TYPE_CHECKING:
    from compressor.bench.settings import Benchmark

OPTIONS = {
    r"bench\.scenarios(\.\d+)?": "--scenario",
    r"bench\.grid\.batch(\.\d+)?": "--batch",
    r"bench\.(p99_ms|price|rounds)": r"--\1",
}
"""Keys of a recipe's `benchmark`, as `settings_of` calls them in an error, and the options that set them."""


def benchmark_of(
    scenarios: Sequence[str],
    p99_ms: float | None,
    batches: Sequence[int],
    price: float | None,
    *,
    pytorch: bool = True,
) -> Benchmark:
    """The settings of a recipe's `benchmark`, from the options of `bench`.

    Raises: InputError that names the options, not the keys of a recipe.
    """
    from compressor.bench.settings import Benchmark
    from compressor.stage import settings_of

    if ("arrivals" in scenarios) != (p99_ms is not None):
        given = f"--p99-ms {p99_ms:g}" if p99_ms is not None else "--scenario arrivals"
        raise InputError(f"--scenario arrivals and --p99-ms MS need each other; give both or neither (got {given})")
    asked: dict[str, Any] = {"p99_ms": p99_ms, "price": price, "pytorch": pytorch}
    if scenarios:
        asked["scenarios"] = ["single stream", *(name for name in scenarios if name != "single stream")]
    if batches:
        asked["grid"] = {"batch": list(batches), "length": ["data", "padded"]}
    try:
        return settings_of(Benchmark, asked, "bench")
    except InputError as error:
        words = str(error)
        for key, option in OPTIONS.items():
            words = re.sub(key, option, words)
        raise InputError(words.replace("--p99_ms", "--p99-ms")) from error


def targets_of(asked: Sequence[str]) -> dict[str, Any] | None:
    """Targets by name, as in a recipe, from `--target DEVICE[/ENGINE[/PRECISION]]`; None where none was asked for.

    >>> targets_of(["cpu", "gpu/torch/fp16"])["gpu-torch-fp16"]
    {'device': 'gpu', 'engine': 'torch', 'precision': 'fp16'}
    """
    from compressor.bench.settings import Target
    from compressor.stage import settings_of

    keys, found = ("device", "engine", "precision"), dict[str, Any]()
    for one in asked:
        parts = one.split("/")
        if len(parts) > len(keys):
            raise InputError(f"--target must be DEVICE, DEVICE/ENGINE or DEVICE/ENGINE/PRECISION (got {one!r})")
        target = dict(zip(keys, parts, strict=False))
        try:
            settings_of(Target, target, "target")
        except InputError as error:
            raise InputError(re.sub(r"^target[.:] ?", f"--target {one}: ", str(error))) from error
        found["-".join(parts)] = target
    return found or None


@contextlib.contextmanager
def columns_by_option(label: str | None = None) -> Iterator[None]:
    """While open, an error about a column that a file lacks says which option names it.

    `label` is the column that `--label` named; None where it was not given.
    """
    try:
        yield
    except InputError as error:
        missing = re.search(r"no column '([^']*)'", str(error))
        if missing is None:
            raise
        option = "--label" if label is not None and missing[1] == label else "--text"
        error.args = (f"{error}; name it with {option} COLUMN",)
        raise
