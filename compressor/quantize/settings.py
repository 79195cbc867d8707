"""What a recipe may say about quantization. Which scheme takes which settings stands in schemes.py."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compressor.data.settings import Mix
from compressor.device import EXACT_SUMS as EXACT_SUMS
from compressor.device import Isa as Isa
from compressor.distill.settings import Terms
from compressor.settings import ByteSize, Integer, LimitText, Settings, Share, parse_limit
from compressor.train.settings import Train

Scheme = Literal["dynamic", "static", "mixed", "qat", "weight_only"]
"""Ways to write a model as INT8; schemes.SCHEMES holds one function for each but mixed, which is made of others."""

Choice = Literal["fastest", "smallest", "most_accurate"]
"""Which of several INT8 models that pass the gate is kept."""

RunsOn = Literal["cpu", "cuda", "tensorrt"]
"""What will run the model; onnxruntime's CUDA provider has no kernels for INT8."""

RangeMethod = Literal["minmax", "moving_average", "percentile", "entropy", "mse"]
"""How the range of an activation is taken from the calibration rows; ranges.RANGES holds one function for each."""


class Calibrate(Settings):
    """Rows and method from which static INT8 takes the range of each activation."""

    source: Literal["train", "unlabelled", "both"] | None = Field(None, alias="from")
    """Which rows, never those of `select` or `test`, which judge the result; train unless given, both where train has
    fewer than two different ones."""
    rows: Annotated[Integer, Field(ge=2)] = 256
    """How many at most, drawn with the run's seed; ranges change little beyond a few hundred."""
    method: RangeMethod = "minmax"
    """How a range is taken from what was seen."""
    percentile: Annotated[float, Field(strict=True, gt=50.0, le=100.0)] = 99.99
    """Percent of the values that the range holds, for method percentile."""
    moving_average: Annotated[float, Field(strict=True, gt=0.0, le=1.0)] = 0.01
    """Share that each new row has in the running range, for method moving_average."""

    def model_post_init(self, _context: object) -> None:
        for method in ("percentile", "moving_average"):
            if method in self.model_fields_set and self.method != method and getattr(self, method) != _usual(method):
                raise ValueError(f"{method} is set, which only method {method} uses (got method {self.method})")


def _usual(name: str) -> object:
    return Calibrate.model_fields[name].default


class Mixed(Settings):
    """INT8 with the most sensitive products left in float: as few as reach what is asked."""

    of: Literal["dynamic", "static"] = "dynamic"
    """The scheme of the other products."""
    keep: Literal["fp32", "fp16", "bf16"] = "fp32"
    """In what those are computed; the other two are refused on a processor that computes them slower than fp32."""
    max_float: Share = 0.25
    """Share of the products that may stay in float at most; beyond it there is little left to gain."""
    drop: LimitText = "<= 0.3pp"
    """Largest fall of the task's score on `select` beside fp32, in pp; where the stage has a gate, the gate decides."""
    agreement: Share = 0.985
    """Least share of rows of `select` decided as fp32 does; where the stage has a gate, the gate decides."""

    def model_post_init(self, _context: object) -> None:
        limit = parse_limit(self.drop)
        if limit.relation != "<=" or limit.unit != "pp" or limit.value < 0:
            raise ValueError(f"drop must be a fall in points such as '<= 0.3pp' (got {self.drop!r})")


class Smooth(Settings):
    """Outliers of activations moved into the weights, which leaves the fp32 function as it was."""

    alpha: Share
    """How much of a channel's range moves: 0 none, 1 all (Xiao et al. 2022, https://arxiv.org/abs/2211.10438)."""


class WeightOnly(Settings):
    """Weights in few bits by blocks: a small file that answers nearly as fp32 does, not a fast one."""

    bits: Literal[8, 4] = 8
    """Bits of a weight."""
    block: Literal[16, 32, 64, 128, 256] = 32
    """Weights along the input that share a scale."""


class Qat(Settings):
    """Training with the rounding of INT8 in place, taught by the model before it was rounded."""

    train: Train = Train(epochs=1.0, learning_rate=1e-5, dropout=0.0)
    """Length and speed; short, slow and without dropout, whose noise is many times that of the rounding."""
    match: Terms | None = None
    """Terms; the teacher's logits and hidden states unless given, no labels: the answers are to stay as they are."""
    mix: Mix | None = None
    """Batches; those of the distill stage upstream unless given."""
    cache: ByteSize = "2GB"
    """Disk for the teacher's answers and hidden states; removed at the end."""
