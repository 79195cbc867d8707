"""A model with fewer tokens: which have to stay beside those that are wanted, its tokenizer and its word table."""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from compressor.errors import InputError
from compressor.model.encoders import copy_tokenizer
from compressor.model.manifest import read_config

Kind = Literal["WordPiece", "BPE", "Unigram"]
"""What kinds of tokenizer can lose tokens and still spell each text as before where none of its tokens is lost."""
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A token that stands for a byte of a character without one of its own."""


def staying(folder: Path, wanted: Iterable[int]) -> NDArray[np.int64]:
    """Ids of the tokens that stay, ascending, shape (kept,): those wanted and those that no tokenizer can do without.

    These are the special and added ones, whatever config.json and the tokenizer's files name, single characters (with
    the sign of a continued word too) and bytes, so that a word whose piece goes is spelled with smaller ones; of BPE
    each piece that the merges of another one pass through; of Unigram the least likely one, which the price of an
    unknown character hangs on. Texts whose tokens all stay, none of them unknown, are read in the same tokens as
    before: the longest pieces of WordPiece, the first merges of BPE and the likeliest pieces of Unigram are still
    there. (A word that WordPiece did not know may be spelled once a longer piece no longer stands in the way.)

    Args:
        folder: of the model.
        wanted: ids of tokens to keep; those that the open model's config names by default are among them.
    Raises: InputError for a tokenizer of another kind, or ids that the model's word table does not have.
    """
    content = _content(folder)
    config = read_config(folder)
    every = _every_token(content)
    rows = int(config["vocab_size"])
    if (largest := max(every.values())) >= rows:
        raise InputError(
            f"the tokenizer in {folder} numbers its tokens up to {largest}, and the model has {rows}; save the model "
            "again with the tokenizer that it was trained with"
        )
    named = {*special_ids(config), *_added_elsewhere(folder)}
    ids = {*wanted, *_needed(content), *(every[token] for token in _spelled_out(folder) if token in every)}
    ids |= {number for number in named if 0 <= number < rows}
    if content["model"]["type"] == "BPE":
        ids |= _parts(content["model"], every, ids)
    return np.array(sorted(ids), dtype=np.int64)


def cut_tokenizer(source: Path, out: Path, kept: NDArray[np.int64]) -> Path:
    """`out`, holding the tokenizer of the model in `source` with the tokens `kept` alone, numbered anew in that order.

    Every file that numbers tokens is written again, so that transformers and `open_encoder` read the same.

    Args:
        kept: ascending ids as `staying` gives them.
    """
    out.mkdir(parents=True, exist_ok=True)
    copy_tokenizer(source, out)
    content = _content(out)
    numbers = {old: new for new, old in enumerate(kept.tolist())}
    _renumber(content, numbers)
    _write_json(out / "tokenizer.json", content)
    model, every = content["model"], _every_token(content)
    if (out / "vocab.txt").is_file():
        _write_lines(out / "vocab.txt", sorted(every, key=lambda token: every[token]))
    if (out / "vocab.json").is_file():
        _write_json(out / "vocab.json", _vocabulary(model))
    if (out / "merges.txt").is_file():
        _write_lines(out / "merges.txt", ["#version: 0.2", *map(" ".join, _merges(model))])
    if (out / "added_tokens.json").is_file():
        added = _read_json(out / "added_tokens.json").items()
        _write_json(out / "added_tokens.json", {token: numbers[old] for token, old in added if old in numbers})
    settings = _read_json(out / "tokenizer_config.json")
    if "added_tokens_decoder" in settings:
        decoder = settings["added_tokens_decoder"].items()
        settings["added_tokens_decoder"] = {
            str(numbers[int(old)]): token for old, token in decoder if int(old) in numbers
        }
        _write_json(out / "tokenizer_config.json", settings)
    return out


def cut_words(model: PreTrainedModel, kept: NDArray[np.int64]) -> PreTrainedModel:
    """A new model whose word table has the rows `kept` alone, in that order; `model` is untouched.

    Args:
        kept: ascending ids as `staying` gives them.
    """
    made = copy.deepcopy(model)
    table: Any = made.get_input_embeddings()
    numbers = {old: new for new, old in enumerate(kept.tolist())}
    rows = torch.from_numpy(kept).to(table.weight.device)
    table.weight = nn.Parameter(table.weight.detach()[rows].clone(), requires_grad=table.weight.requires_grad)
    table.num_embeddings = len(kept)
    table.padding_idx = numbers.get(table.padding_idx)
    _renumber_config(made.config, numbers)
    return made


def _renumber_config(config: PreTrainedConfig, numbers: Mapping[int, int]) -> None:
    for name, value in config.to_dict().items():
        if not name.endswith("_token_id"):
            continue
        if isinstance(value, int) and value in numbers:
            setattr(config, name, numbers[value])
        elif isinstance(value, list):
            setattr(config, name, [numbers.get(each, each) for each in value])
    config.vocab_size = len(numbers)


def special_ids(config: Mapping[str, Any]) -> set[int]:
    """Ids that a model's config names, one by one or in lists.

    >>> sorted(special_ids({"pad_token_id": 0, "eos_token_id": [2, 5], "vocab_size": 9, "bos_token_id": None}))
    [0, 2, 5]
    """
    values = [value for name, value in config.items() if name.endswith("_token_id")]
    every = [each for value in values for each in (value if isinstance(value, list) else [value])]
    return {each for each in every if isinstance(each, int)}


def _added_elsewhere(folder: Path) -> set[int]:
    """Ids of added tokens that stand beside tokenizer.json."""
    decoder = _read_json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    return {*map(int, decoder), *map(int, _read_json(folder / "added_tokens.json").values())}


def _content(folder: Path) -> dict[str, Any]:
    """tokenizer.json of a model folder, made where there is none; InputError for a kind that cannot be cut."""
    if (folder / "tokenizer.json").is_file():
        content = _read_json(folder / "tokenizer.json")
    else:
        with tempfile.TemporaryDirectory() as made:
            copy_tokenizer(folder, Path(made))
            content = _read_json(Path(made) / "tokenizer.json")
    model = content.get("model") or {}
    kind = model.get("type")
    if kind is None and "vocab" in model:
        kind = model["type"] = _kind_of(model)
    if kind not in get_args(Kind):
        raise InputError(
            f"the tokenizer in {folder} is of type {kind}, whose tokens cannot be removed; known are "
            f"{', '.join(get_args(Kind))}: leave vocabulary out of remove"
        )
    return content


def _kind_of(model: Mapping[str, Any]) -> Kind | None:
    """The kind of a tokenizer's model whose file, as old ones do, names no type; None where it is none of ours."""
    if "merges" in model:
        return "BPE"
    if isinstance(model["vocab"], list):
        return "Unigram"
    return "WordPiece" if "continuing_subword_prefix" in model else None


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    """Tokens of the tokenizer's model with their ids."""
    found = model["vocab"]
    return {piece: number for number, (piece, _) in enumerate(found)} if isinstance(found, list) else dict(found)


def _every_token(content: Mapping[str, Any]) -> dict[str, int]:
    """All tokens with their ids, added ones too."""
    added = {token["content"]: int(token["id"]) for token in content.get("added_tokens") or ()}
    return _vocabulary(content["model"]) | added


def _needed(content: Mapping[str, Any]) -> set[int]:
    """Ids that the tokenizer itself names, and those of characters and bytes."""
    model, vocabulary, every = content["model"], _vocabulary(content["model"]), _every_token(content)
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    found = {int(token["id"]) for token in content.get("added_tokens") or ()}
    found |= {ids[place] for ids, place in _frame(content.get("post_processor"))}
    found |= {number for token, number in vocabulary.items() if _is_smallest(token, prefix, suffix)}
    if model.get("unk_token") in every:
        found.add(every[model["unk_token"]])
    if isinstance(content.get("padding"), dict):
        found.add(int(content["padding"]["pad_id"]))
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        found |= {scores.index(min(scores)), *([] if model.get("unk_id") is None else [int(model["unk_id"])])}
    return found


def _is_smallest(token: str, prefix: str, suffix: str) -> bool:
    """Whether a token is one character, or stands for a byte.

    >>> _is_smallest("##a", "##", ""), _is_smallest("<0x0A>", "", ""), _is_smallest("an", "##", "")
    (True, True, False)
    """
    return len(token.removeprefix(prefix).removesuffix(suffix)) == 1 or BYTE.fullmatch(token) is not None


def _frame(processor: Any) -> Iterator[tuple[list[Any], int]]:
    """Each list, with the place in it, where a post-processor keeps the id of a token that it puts around texts."""
    if not isinstance(processor, dict):
        return
    for each in processor.get("processors") or ():
        yield from _frame(each)
    for token in (processor.get("special_tokens") or {}).values():
        yield from ((token["ids"], place) for place in range(len(token["ids"])))
    for name in ("sep", "cls"):
        if name in processor:
            yield processor[name], 1


def _spelled_out(folder: Path) -> list[str]:
    """Special tokens as the tokenizer's settings spell them."""
    settings = _read_json(folder / "special_tokens_map.json") | _read_json(folder / "tokenizer_config.json")
    found: list[str] = []
    for name, value in settings.items():
        if name.endswith(("_token", "_tokens")):
            for each in value if isinstance(value, list) else [value]:
                said = each.get("content") if isinstance(each, dict) else each
                found += [said] if isinstance(said, str) else []
    return found


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of pieces that BPE joins, the first ones first; old files write them as one text."""
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    return [(left, right) for left, right in pairs]


def _joined(model: Mapping[str, Any], left: str, right: str) -> str:
    """What a merge makes of two pieces."""
    return left + right.removeprefix(model.get("continuing_subword_prefix") or "")


def _parts(model: Mapping[str, Any], every: Mapping[str, int], ids: Iterable[int]) -> set[int]:
    """Ids of all pieces that merges make these tokens of, step by step."""
    made_of: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for left, right in _merges(model):
        made_of[_joined(model, left, right)].append((left, right))
    spelled = {number: token for token, number in every.items()}
    waiting = [spelled[number] for number in ids if number in spelled]
    found = set(waiting)
    while waiting:
        new = {part for pair in made_of.get(waiting.pop(), ()) for part in pair} - found
        found |= new
        waiting += new
    return {every[token] for token in found}


def _renumber(content: dict[str, Any], numbers: Mapping[int, int]) -> None:
    """Leave the tokens that are numbered, under their new ids, in a tokenizer.json, in place."""
    model = content["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in numbers]
        if model.get("unk_id") is not None:
            model["unk_id"] = numbers[model["unk_id"]]
    else:
        stay = sorted((numbers[number], token) for token, number in model["vocab"].items() if number in numbers)
        model["vocab"] = {token: number for number, token in stay}
    if model["type"] == "BPE":
        pieces = model["vocab"]
        model["merges"] = [
            [left, right]
            for left, right in _merges(model)
            if left in pieces and right in pieces and _joined(model, left, right) in pieces
        ]
    for token in content.get("added_tokens") or ():
        token["id"] = numbers[token["id"]]
    if isinstance(content.get("padding"), dict):
        content["padding"]["pad_id"] = numbers[content["padding"]["pad_id"]]
    for ids, place in _frame(content.get("post_processor")):
        ids[place] = numbers[ids[place]]


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}; save the model again") from error
    return content if isinstance(content, dict) else {}


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_lines(file: Path, lines: Iterable[str]) -> None:
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
