"""Quantization-aware training: the fp32 model learns to answer as before with INT8's rounding in place."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.data.encode import open_encoder
from compressor.device import torch_device
from compressor.distill.distiller import Distiller
from compressor.distill.settings import HiddenMatch, LogitsMatch
from compressor.distill.teacher_cache import CACHE_FOLDER
from compressor.errors import InputError
from compressor.export.exporter import Exporter, traced_for_fusion
from compressor.model.encoders import load_model, save_model
from compressor.quantize.dynamic import dynamic
from compressor.quantize.fake import rounding
from compressor.quantize.material import Material
from compressor.quantize.settings import Qat
from compressor.stage import Decision
from compressor.train.finetune import manifest_of, probe_inputs

if TYPE_CHECKING:
    from onnx import ModelProto


MATCH = (LogitsMatch(), HiddenMatch(weight=0.5))
"""What is copied of the teacher unless told."""


def qat(material: Material, settings: Qat, *, float_nodes: Collection[str] = frozenset()) -> ModelProto:
    """The model trained with rounding, exported and written as dynamic INT8.

    It is not smoothed: its weights have learned the rounding of the activations as they are.

    Args:
        float_nodes: names of products of the fused graph that stay in fp32.
    Raises: InputError where the material has no torch weights or no rows.
    """
    if material.smooth is not None:
        because = "scheme qat takes no smoothing: its weights learned to live with the activations as they are"
        material.decide(Decision("qat", "not smoothed", because))
    learned = learn(material, settings)
    place = material.work / "qat-fp32"
    shutil.rmtree(place, ignore_errors=True)
    exported = Exporter(learned, data=material.data, progress=material.progress).export(place)
    return dynamic(
        replace(material, folder=exported, torch_folder=learned, raw=lambda: traced(learned), smooth=None),
        float_nodes=float_nodes,
        even=False,
    )


def learn(material: Material, settings: Qat) -> Path:
    """A torch folder with the model after its training, in fp32: rounding it gives what it learned to answer.

    The teacher is `material.teacher`, or the model itself before the training. An interrupted training goes on from its
    checkpoint in `material.work`.

    Raises: InputError where the material has no torch weights, or no rows to learn from.
    """
    folder, out = material.torch_folder, material.work / "qat" / "model"
    if folder is None:
        raise InputError(
            f"scheme qat trains the model, which needs its safetensors (got ONNX alone: {material.folder}); "
            "give the torch folder, or take qat out of try"
        )
    if material.data is None:
        raise InputError("scheme qat learns from rows (got none); give data=, or take qat out of try")
    data = material.data
    model = load_model(folder, labels=data.labels, make_head=False).to(torch_device(material.device))
    distiller = Distiller(
        material.teacher or folder,
        model,
        data=data,
        match=list(settings.match or MATCH),
        mix=settings.mix,
        train=settings.train,
        cache=settings.cache,
        tokenizer=folder,
        seed=material.seed,
        device=material.device,
        progress=material.progress,
        decide=material.decide,
        smoke=material.smoke,
        what="qat",
    )
    # weights that are rounded otherwise make another training, whose checkpoint must not be taken up
    place = material.work / "qat" / ("reduced" if material.reduce_range else "full")
    cache = material.work / "qat" / CACHE_FOLDER
    with rounding(model, reduce_range=material.reduce_range):
        distiller.train_model(model, place, cache_at=cache)
    probe = probe_inputs(data.train, open_encoder(folder, data.max_tokens))
    save_model(model.eval(), out, tokenizer_from=folder, manifest=manifest_of(data, model), probe=probe)
    shutil.rmtree(cache, ignore_errors=True)
    return out


def traced(folder: Path) -> ModelProto:
    """The graph of a torch folder with each layer's head count written in, not fused."""
    return traced_for_fusion(load_model(folder, attention="eager").eval())
