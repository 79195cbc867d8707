"""The training of a pruning: by distillation from the teacher, with the terms and batches of `recover`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from compressor.data.rows import DataSets
from compressor.distill.settings import DEFAULT_MATCH
from compressor.errors import InputError
from compressor.prune.plan import Plan
from compressor.prune.targets import share_of_train
from compressor.stage import Decision

if TYPE_CHECKING:
    from compressor.distill.distiller import Distiller


def open_training(
    plan: Plan, data: DataSets, student: PreTrainedModel, *, step: int, what: str, decide: Callable[[Decision], None]
) -> Distiller:
    """What trains `student`, in hand, as the teacher's; the input model teaches where the plan names no other.

    Args:
        plan: one with `recover`, whose training is shared among its steps.
        step: of the plan, from 1; the seed follows from it.
        what: the training in a few words.
    """
    from compressor.distill.distiller import Distiller

    recover = plan.recover
    assert recover is not None
    return Distiller(
        plan.teacher or plan.folder,
        student,
        data=data,
        match=list(recover.match or DEFAULT_MATCH),
        mix=recover.mix,
        train=share_of_train(recover.train, plan.steps),
        cache=recover.cache,
        tokenizer=plan.folder,
        seed=plan.seed + step,
        device=plan.device,
        progress=plan.progress,
        decide=decide,
        smoke=plan.smoke,
        what=what,
    )


@contextlib.contextmanager
def naming_layers(left: Sequence[int], before: int, *, step: int) -> Iterator[None]:
    """Inside, an InputError of a training tells which layers the cut left, as terms may pair one that is gone.

    Args:
        left: layers of the input, from 0, that are left after `step`.
        before: layers of the input.
    """
    try:
        yield
    except InputError as error:
        if len(left) == before:
            raise
        raise InputError(
            f"recover.{error}: of the input's layers 1 to {before}, cut {step} left "
            f"{', '.join(str(layer + 1) for layer in left)}, which count from 1 now; pair layers that are left, or "
            "take a map by name, such as uniform"
        ) from error
