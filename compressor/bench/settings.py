"""What a recipe may say about timing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compressor.device import Isa
from compressor.settings import Flag, Integer, Settings, Word

Scenario = Literal["single stream", "one core", "offline", "arrivals"]
"""How work comes in: calls one after the other; the same on one processor; all rows at once; at random times."""
BaselineName = Literal["tfidf", "static", "small"]
"""What models are held against; the report holds one function for each."""
BASELINES: tuple[BaselineName, ...] = ("tfidf", "static", "small")


Rows = Annotated[Integer, Field(ge=1, le=1024)]
"""Rows in one call."""
Length = Literal["data", "padded"] | Annotated[Integer, Field(ge=3, le=4096)]
"""`data`: own lengths, padded to the batch's longest; `padded`: to the longest row timed; or tokens a row, to which
rows are cut or repeated."""
TargetEngine = Literal["onnxruntime", "torch", "openvino", "tensorrt", "fastest"]
"""What may run a model at a target; `fastest` measures those that can, and keeps the fastest."""
ENGINES_OF: dict[str, tuple[TargetEngine, ...]] = {
    "cpu": ("onnxruntime", "torch", "openvino", "fastest"),
    "gpu": ("onnxruntime", "torch", "tensorrt", "fastest"),
}
"""The engines of each device."""


class Workload(Settings):
    """What a target is asked for in use."""

    batch: Rows = 1
    """Rows in one call."""
    length: Length = "data"
    """Tokens a row; the data's own lengths unless given."""


class Target(Settings):
    """Where models are timed."""

    device: Literal["cpu", "gpu"] = "cpu"
    """The machine's processor, or its first NVIDIA device (there by wall time and by the device's own events)."""
    engine: TargetEngine = "onnxruntime"
    """What runs the model; ratios are of one engine. On device gpu `onnxruntime` is its
    CUDA provider and `tensorrt` its TensorRT provider; `openvino` is for device cpu."""
    threads: Annotated[Integer, Field(ge=1)] | None = None
    """Threads a model may use; all that this process may use unless given."""
    isa: Isa | None = None
    """Instructions of the processor that the INT8 model is for, such as avx2, where it is another than this one."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """In what torch or TensorRT computes an fp32 model on device gpu; onnxruntime computes as its file says."""
    workload: Workload | None = None
    """Batch and length that this target will be asked for, timed beside single rows; none further unless given."""

    def model_post_init(self, _context: object) -> None:
        known = ENGINES_OF[self.device]
        if self.engine not in known:
            hint = "; write engine: torch beside it" if self.device == "gpu" else "; it needs device: gpu"
            raise ValueError(f"device {self.device} has the engines {', '.join(known)} (got {self.engine}){hint}")
        if self.device == "gpu" and self.isa is not None:
            raise ValueError(f"isa names instructions of a processor (got {self.isa}); device gpu has none of them")
        if self.precision != "fp32" and (self.device, self.engine) not in CASTING:
            raise ValueError(
                f"precision {self.precision} is for device gpu with engine torch or tensorrt (got device "
                f"{self.device}, engine {self.engine}); elsewhere export a model in that precision"
            )


CASTING = frozenset({("gpu", "torch"), ("gpu", "tensorrt")})
"""Where an fp32 model can be computed in fewer bits without another file."""

TARGETS: dict[str, Target] = {"cpu": Target(), "gpu": Target(device="gpu", engine="torch")}
"""The targets that need no definition."""


class Grid(Settings):
    """Sizes of batches that are timed beside batch 1 at the data's own lengths: every batch with every length."""

    batch: list[Rows] = Field([1], min_length=1)
    """Rows in one call."""
    length: list[Length] = Field(["data"], min_length=1)
    """Tokens a row: `data`, `padded` or a number."""


class Benchmark(Settings):
    """How latency is measured."""

    targets: list[Word] = Field(["cpu"], min_length=1)
    """Names of targets; ratios, budgets and scenarios are taken at the first."""
    rounds: Annotated[Integer, Field(ge=3, le=1000)] = 15
    """Rounds in which each model gets one slot of about 0.3 s; 15 give a few percent on a quiet machine."""
    grid: Grid | None = None
    """Further batches and lengths; none unless asked for, as each costs time."""
    scenarios: list[Scenario] = Field(["single stream"], min_length=1)
    """Ways in which work comes in; `single stream` must be among them, as ratios and budgets are taken from it."""
    p99_ms: Annotated[float, Field(strict=True, gt=0)] | None = None
    """Milliseconds that 99 of 100 requests may take at most in scenario `arrivals`, waiting and tokenizing included."""
    end_to_end: Flag = True
    """Whether calls are also timed with their tokenizing, as a row of its own: of small models it is a large part."""
    pytorch: Flag = True
    """Whether the reference is also timed in PyTorch, in the rounds that ratios are taken from: a second figure beside
    those of one engine."""
    price: Annotated[float, Field(strict=True, gt=0)] | None = None
    """What this machine costs an hour, in your currency; gives the cost of a million rows."""
    baselines: list[BaselineName] = list(BASELINES)
    """Simple models that the report holds beside the deployed one; [] makes none."""

    def model_post_init(self, _context: object) -> None:
        if "single stream" not in self.scenarios:
            raise ValueError("scenarios must hold 'single stream', which ratios and budgets are taken from")
        if ("arrivals" in self.scenarios) != (self.p99_ms is not None):
            raise ValueError("p99_ms, such as 50, and scenario arrivals need each other; give both or neither")
