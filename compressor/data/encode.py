"""Texts as token ids, with what was lost on the way counted: truncated rows and unknown tokens.

Needs tokenizers and numpy alone, so that timing processes start fast.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compressor.errors import InputError
from compressor.sources.encoding import lines_of, read_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from compressor.data.rows import Text

CHUNK_ROWS = 2048
"""Rows handed to the tokenizer at a time; its own objects are some fifty times larger than the ids kept."""

UNKNOWN_SHARE_LIMIT = 0.5
"""Above this share of unknown tokens the vocabulary was not made for the script of the rows."""

OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet"})
"""Model types whose first position is the padding id plus one."""

WORDPIECE_CLASSES = frozenset({"BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer"})
"""Tokenizer classes, Fast or not, that vocab.txt and the settings say wholly."""

BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


@dataclass(frozen=True)
class Encoded:
    """Rows as token ids, in the order of the texts.

    ids: one int32 array a row, special tokens included. types: segment ids alike, None for single texts.
    truncated: rows that were cut to the limit. unknown, total: tokens that the vocabulary lacks, and all tokens,
    special ones left out.
    """

    ids: list[NDArray[np.int32]]
    types: list[NDArray[np.int32]] | None
    truncated: int
    unknown: int
    total: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, shape (rows,)."""
        return np.fromiter((len(row) for row in self.ids), dtype=np.int64, count=len(self.ids))


@dataclass(frozen=True)
class Encoder:
    """A tokenizer with its limit; made by `open_encoder`."""

    tokenizer: Tokenizer
    max_tokens: int
    pad_id: int
    mask_id: int | None
    """None where the vocabulary has no mask token."""
    unknown_id: int | None
    """None where every text can be spelled."""
    special_ids: tuple[int, ...]

    def encode(self, texts: Sequence[Text]) -> Encoded:
        """The texts as ids; a row over `max_tokens` is cut (of a pair the longer text first) and counted.

        A pair is a tuple of two texts, or a list as JSON has it. Raises InputError with the number of a row that is
        neither text nor pair.
        """
        texts = [tuple(text) if isinstance(text, list) else text for text in texts]
        ids: list[NDArray[np.int32]] = []
        types: list[NDArray[np.int32]] = []
        truncated = unknown = total = 0
        pairs = any(isinstance(text, tuple) for text in texts)
        for start in range(0, len(texts), CHUNK_ROWS):
            for row in self._rows(texts[start : start + CHUNK_ROWS], start):
                row_ids = np.array(row.ids, dtype=np.int32)
                ids.append(row_ids)
                if pairs:
                    types.append(np.array(row.type_ids, dtype=np.int32))
                truncated += bool(row.overflowing)
                total += len(row_ids) - sum(row.special_tokens_mask)
                if self.unknown_id is not None:
                    unknown += int((row_ids == self.unknown_id).sum())
        return Encoded(ids, types if pairs else None, truncated, unknown, total)

    def _rows(self, texts: Sequence[Text], start: int) -> list[Any]:
        """The tokenizer's own rows; InputError for what is no text, counted from `start`."""
        try:
            return list(self.tokenizer.encode_batch(list(texts)))
        except (TypeError, UnicodeEncodeError) as problem:
            for place, text in enumerate(texts, start=start):
                parts = text if isinstance(text, tuple) and len(text) == 2 else (text,)
                if not all(isinstance(part, str) and _is_whole(part) for part in parts):
                    raise InputError(
                        f"row {place} (from 0) is no text that can be encoded: {text!r:.60}; give a string, or a "
                        "tuple of two for a pair"
                    ) from problem
            raise


def open_encoder(folder: Path, max_tokens: int) -> Encoder:
    """The tokenizer of a model folder, cutting rows at `max_tokens` (special tokens included).

    Read from tokenizer.json, or made from the vocab.txt of a BERT.

    Raises: InputError where there is neither, one cannot be read, or the model has fewer positions.
    """
    settings = _read_json(folder / "special_tokens_map.json") | _read_json(folder / "tokenizer_config.json")
    config = _read_json(folder / "config.json")
    tokenizer = _open_tokenizer(folder, {"tokenizer_class": config.get("tokenizer_class"), **settings})
    pad_id = _pad_id(tokenizer, settings, config)
    limit = _positions(config, pad_id)
    if limit is not None and max_tokens > limit:
        raise InputError(f"data.max_tokens must be at most {limit}, the positions of {folder} (got {max_tokens})")
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens, strategy="longest_first")
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    return Encoder(
        tokenizer,
        max_tokens,
        pad_id=pad_id,
        mask_id=_token_id(tokenizer, settings, "mask_token", ("[MASK]", "<mask>")),
        unknown_id=_token_id(tokenizer, settings, "unk_token", ("[UNK]", "<unk>")),
        special_ids=tuple(sorted(special | {pad_id})),
    )


def _open_tokenizer(folder: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer in tokenizer.json, else the one of a BERT's vocab.txt."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if file.is_file():
        if not isinstance(_read_json(file).get("model"), dict):
            raise InputError(f"{file} describes no tokenizer: it has no `model`; save it again with save_pretrained")
        return Tokenizer.from_file(str(file))
    made = _bert_tokenizer(folder, settings)
    if made is None:
        raise InputError(
            f"{folder} holds no tokenizer.json; open the model once with transformers' AutoTokenizer and save it there "
            "with save_pretrained"
        )
    return made


def _bert_tokenizer(folder: Path, settings: Mapping[str, Any]) -> Tokenizer | None:
    """What transformers' BertTokenizer makes of vocab.txt; None where that does not say the whole tokenizer."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    known = str(settings.get("tokenizer_class") or "BertTokenizer").removesuffix("Fast") in WORDPIECE_CLASSES
    if not known or not (folder / "vocab.txt").is_file() or (folder / "added_tokens.json").is_file():
        return None
    vocabulary = {token: number for number, token in enumerate(lines_of(read_text(folder / "vocab.txt", None)))}
    tokens = {key: _spelling(settings.get(key)) or usual for key, usual in BERT_TOKENS.items()}
    unknown, start, end = (tokens[key] for key in ("unk_token", "cls_token", "sep_token"))
    if not {unknown, start, end} <= vocabulary.keys():
        return None
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} $B:1 {end}:1",
        special_tokens=[(start, vocabulary[start]), (end, vocabulary[end])],
    )
    tokenizer.add_special_tokens([token for token in tokens.values() if token in vocabulary])
    return tokenizer


def collate(encoded: Encoded, indices: Sequence[int], pad_id: int) -> dict[str, NDArray[np.int64]]:
    """The rows at `indices` as one batch padded to its longest: input_ids, attention_mask, token_type_ids.

    Each of shape (len(indices), longest), int64.
    """
    rows = [encoded.ids[index] for index in indices]
    types = None if encoded.types is None else [encoded.types[index] for index in indices]
    return pad(rows, types, pad_id)


def pad(
    rows: Sequence[NDArray[np.int32]], types: Sequence[NDArray[np.int32]] | None, pad_id: int
) -> dict[str, NDArray[np.int64]]:
    """Rows of ids as one batch padded to its longest, with mask and segments; each (rows, longest) int64."""
    longest = max((len(row) for row in rows), default=0)
    shape = (len(rows), longest)
    ids = np.full(shape, pad_id, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    segments = np.zeros(shape, dtype=np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = 1
        if types is not None:
            segments[place, : len(row)] = types[place]
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}


def check_script(encoded: Encoded, name: str) -> None:
    """Nothing, where the vocabulary knows the script of the rows; `name` says which rows.

    Raises: InputError when over half of the tokens are unknown.
    """
    if encoded.total and encoded.unknown / encoded.total > UNKNOWN_SHARE_LIMIT:
        share = encoded.unknown / encoded.total
        raise InputError(
            f"{name}: {share:.0%} of the tokens are unknown to the model's vocabulary; its tokenizer was made for "
            "another language or script, or the file was read in the wrong encoding"
        )


def _is_whole(text: str) -> bool:
    """Whether a text holds no half character (lone surrogate)."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise InputError(f"{file} is not JSON: {problem}") from problem
    return value if isinstance(value, dict) else {}


def _token_id(tokenizer: Tokenizer, settings: Mapping[str, Any], key: str, usual: Sequence[str]) -> int | None:
    """Id of a special token by its key in the tokenizer's settings, else by its usual spellings; None if absent."""
    said = _spelling(settings.get(key))
    for token in usual if said is None else [said]:
        number = tokenizer.token_to_id(token)
        if number is not None:
            return int(number)
    return None


def _spelling(token: Any) -> str | None:
    """A special token as its settings spell it, plainly or with options; None where they do not."""
    said = token.get("content") if isinstance(token, dict) else token
    return said if isinstance(said, str) else None


def _pad_id(tokenizer: Tokenizer, settings: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    number = _token_id(tokenizer, settings, "pad_token", ("[PAD]", "<pad>"))
    if number is not None:
        return number
    said = config.get("pad_token_id")
    return said if isinstance(said, int) else 0


def _positions(config: Mapping[str, Any], pad_id: int) -> int | None:
    """How many tokens a row may have by the model's position table; None where config.json does not say."""
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions <= 0:
        return None
    return positions - (pad_id + 1) if config.get("model_type") in OFFSET_POSITIONS else positions
