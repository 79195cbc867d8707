"""What a recipe may say about timing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compressor.settings import Flag, Integer, Settings, Word

Scenario = Literal["single stream", "one core", "offline", "arrivals"]
"""How work comes in: calls one after the other; the same on one processor; all rows at once; at random times."""
BaselineName = Literal["tfidf", "static", "small"]
"""What models are held against; the report holds one function for each."""
BASELINES: tuple[BaselineName, ...] = ("tfidf", "static", "small")


class Target(Settings):
    """Where models are timed."""

    device: Literal["cpu", "gpu"] = "cpu"
    """The machine's processor, or its first NVIDIA device (engine torch alone, wall time until the device is done)."""
    engine: Literal["onnxruntime", "torch"] = "onnxruntime"
    """What runs the model; figures of two engines are never divided by one another."""
    threads: Annotated[Integer, Field(ge=1)] | None = None
    """Threads a model may use; all that this process may use unless given."""

    def model_post_init(self, _context: object) -> None:
        if self.device == "gpu" and self.engine != "torch":
            raise ValueError("device gpu is timed with engine torch alone; write engine: torch beside it")


TARGETS: dict[str, Target] = {"cpu": Target(), "gpu": Target(device="gpu", engine="torch")}
"""The targets that need no definition."""


class Grid(Settings):
    """Sizes of batches that are timed beside batch 1 at the data's own lengths: every batch with every length."""

    batch: list[Annotated[Integer, Field(ge=1, le=1024)]] = Field([1], min_length=1)
    """Rows in one call."""
    length: list[Literal["data", "padded"] | Annotated[Integer, Field(ge=3, le=4096)]] = Field(["data"], min_length=1)
    """`data`: own lengths, padded to the batch's longest; `padded`: to the longest row timed; or tokens a row, to which
    rows are cut or repeated."""


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
    price: Annotated[float, Field(strict=True, gt=0)] | None = None
    """What this machine costs an hour, in your currency; gives the cost of a million rows."""
    baselines: list[BaselineName] = list(BASELINES)
    """Simple models that the report holds beside the deployed one; [] makes none."""

    def model_post_init(self, _context: object) -> None:
        if "single stream" not in self.scenarios:
            raise ValueError("scenarios must hold 'single stream', which ratios and budgets are taken from")
        if ("arrivals" in self.scenarios) != (self.p99_ms is not None):
            raise ValueError("p99_ms, such as 50, and scenario arrivals need each other; give both or neither")
