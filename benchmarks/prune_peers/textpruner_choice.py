"""Which heads and neurons TextPruner keeps of a checkpoint, in an environment of its own (textpruner.txt).

    python textpruner_choice.py CHECKPOINT ROWS OUT --heads N --neurons N --iterations N

ROWS is jsonl of `ids` and `label`, padded here to the longest of 32, in the order given. N heads and neurons stay a
layer on average, unevenly where its scores say so. OUT becomes JSON: `heads` and `neurons`, the kept numbers of each
layer, and the processor's `seconds` of the choice.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from textpruner import GeneralConfig, TransformerPruner, TransformerPruningConfig
from transformers import AutoModelForSequenceClassification

BATCH_ROWS = 32


def batches(file: Path) -> list[dict[str, torch.Tensor]]:
    """The rows in batches, with labels."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    made = []
    for start in range(0, len(rows), BATCH_ROWS):
        part = rows[start : start + BATCH_ROWS]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row["ids"]) for row in part], batch_first=True)
        lengths = torch.tensor([len(row["ids"]) for row in part])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        labels = torch.tensor([row["label"] for row in part])
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def main() -> None:
    """Choose, and write what stays."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("out", type=Path)
    for name in ("--heads", "--neurons", "--iterations"):
        parser.add_argument(name, type=int, required=True)
    given = parser.parse_args()
    model = AutoModelForSequenceClassification.from_pretrained(given.checkpoint)
    settings = TransformerPruningConfig(
        target_ffn_size=given.neurons,
        target_num_of_heads=given.heads,
        pruning_method="iterative",
        n_iters=given.iterations,
        ffn_even_masking=False,
        head_even_masking=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        pruner = TransformerPruner(model, settings, GeneralConfig(use_device="cpu", output_dir=folder))
        started = time.process_time()
        pruner.prune(batches(given.rows), save_model=False)
        seconds = time.process_time() - started
    kept = {
        name: [torch.nonzero(layer).flatten().tolist() for layer in mask]
        for name, mask in (("heads", pruner.head_mask), ("neurons", pruner.ffn_mask))
    }
    given.out.write_text(json.dumps({**kept, "seconds": seconds}), encoding="utf-8")


if __name__ == "__main__":
    main()
