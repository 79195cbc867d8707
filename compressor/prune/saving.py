"""A pruned model's folder, checked by opening it again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from compressor.data.encode import open_encoder
from compressor.data.rows import DataSets
from compressor.model.encoders import save_model
from compressor.model.manifest import read_manifest
from compressor.prune.scoring import row_inputs

PROBE_ROWS = 8
"""Rows on which a saved model is compared with itself."""


def save_pruned(
    model: PreTrainedModel, out: Path, *, source: Path, data: DataSets, tokenizer: Path | None = None
) -> Path:
    """`out`, holding `model` after its reload was checked on rows of `select`, or of train where there are none.

    Args:
        source: folder of the model that was pruned, whose manifest the new one follows.
        tokenizer: folder of the tokenizer and config that `model` reads; `source` unless given.
    """
    home = tokenizer or source
    encoder = open_encoder(home, data.max_tokens)
    rows = data.select if len(data.select) else data.train
    encoded = encoder.encode(rows.head(PROBE_ROWS).texts)
    manifest = replace(
        read_manifest(source),
        labels=data.labels,
        metric=data.task.metric,
        text=data.text_columns,
        max_tokens=data.max_tokens,
    )
    probe = row_inputs(encoded, range(len(encoded)), encoder.pad_id)
    return save_model(model, out, tokenizer_from=home, manifest=manifest, probe=probe)
