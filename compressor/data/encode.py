"""Texts as token ids, with what was lost on the way counted: truncated rows and unknown tokens.

Needs tokenizers and numpy alone, so that timing processes start fast.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compressor.data.encoded import Encoded, check_pool, check_script, collate, offsets_of
from compressor.errors import InputError
from compressor.sources.encoding import lines_of, read_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from compressor.data.rows import Text

__all__ = ["Encoded", "Encoder", "check_pool", "check_script", "collate", "open_encoder"]

CHUNK_ROWS = 2048
"""Rows handed to the tokenizer at a time; its own objects are some fifty times larger than the ids kept."""

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
        pairs = any(isinstance(text, tuple | list) for text in texts)
        chunks = [
            self._chunk(texts[start : start + CHUNK_ROWS], start, pairs=pairs)
            for start in range(0, len(texts), CHUNK_ROWS)
        ]
        return _joined(chunks or [Encoded.of([], [] if pairs else None)])

    def _chunk(self, texts: Sequence[Text], start: int, *, pairs: bool) -> Encoded:
        """A few texts as ids."""
        rows = self._rows([tuple(text) if isinstance(text, list) else text for text in texts], start)
        ids = [row.ids for row in rows]
        encoded = Encoded.of(ids, [row.type_ids for row in rows] if pairs else None)
        unknown = -1 if self.unknown_id is None else self.unknown_id
        met = np.append(0, np.cumsum(encoded.ids == unknown))[encoded.offsets]
        return replace(
            encoded,
            own=encoded.own - np.array([sum(row.special_tokens_mask) for row in rows], dtype=np.int32),
            unknown_tokens=np.diff(met).astype(np.int32),
            truncated=sum(bool(row.overflowing) for row in rows),
        )

    def continues(self) -> NDArray[np.bool_]:
        """Which tokens go on with a word that another one began, shape (vocabulary,), by how they are spelled.

        Pieces with ## do in a WordPiece vocabulary, those without a sign for the space (Ġ or ▁) in others; no token
        where the vocabulary has neither.
        """
        vocabulary = self.tokenizer.get_vocab(with_added_tokens=True)
        spellings = [token for token in vocabulary if vocabulary[token] not in self.special_ids]
        goes_on = np.zeros(max(vocabulary.values(), default=-1) + 1, dtype=np.bool_)
        wordpiece = any(token.startswith("##") for token in spellings)
        spaced = any(token.startswith(("Ġ", "▁")) for token in spellings)
        for token in spellings:
            inside = token.startswith("##") if wordpiece else spaced and not token.startswith(("Ġ", "▁"))
            goes_on[vocabulary[token]] = inside and len(token) > 2 * wordpiece
        return goes_on

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


def _joined(chunks: Sequence[Encoded]) -> Encoded:
    """All rows of the chunks, in order."""
    types = [chunk.types for chunk in chunks if chunk.types is not None]
    return Encoded(
        np.concatenate([chunk.ids for chunk in chunks]),
        offsets_of(np.concatenate([chunk.lengths for chunk in chunks])),
        np.concatenate(types) if types else None,
        np.concatenate([chunk.own for chunk in chunks]),
        np.concatenate([chunk.unknown_tokens for chunk in chunks]),
        sum(chunk.truncated for chunk in chunks),
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
    return positions - (pad_id + 1) if counts_from_padding(config) else positions


def counts_from_padding(config: Mapping[str, Any]) -> bool:
    """Whether a model's first position is the padding id plus one, by its config.json."""
    return str(config.get("model_type")).removeprefix("pruned-") in OFFSET_POSITIONS
