"""Opening and saving encoders."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from optimum.exporters.tasks import TasksManager
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from compressor.errors import InputError, StageError
from compressor.model import pruned_modeling
from compressor.model.attention import Attention
from compressor.model.families import uneven_family
from compressor.model.manifest import MANIFEST_NAME, Manifest, config_labels, read_config
from compressor.model.parts import shapes
from compressor.model.states import model_inputs

RELOAD_TOLERANCE = 1e-5
"""Largest difference of a logit between a model and what its folder gives back."""
LEFTOVERS = (
    "*.onnx",
    "*.onnx.data",
    "*.safetensors",
    "*.safetensors.index.json",
    "pruned_modeling.py",
    "config.json",
    "compressor.json",
)
"""Files of an earlier model that a later one in the same folder may not have, and would be taken for."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
VOCABULARIES = ("vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
"""Without one of these transformers makes an empty tokenizer and says nothing."""


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No loading report, warnings or progress bars of transformers inside."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder; InputError when there is none, naming pickles where those are all."""
    found = sorted(folder.glob("*.safetensors"))
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if not found:
        what = f"only pickled weights ({', '.join(pickles)}), which are never read" if pickles else "no weights"
        raise InputError(f"{folder} holds {what}; convert the model to model.safetensors with save_pretrained")
    for path in found:
        _require_whole(path)
    return found


def _require_whole(path: Path) -> None:
    """Nothing, for a file whose header and size agree; InputError for a truncated one."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is truncated or no safetensors file ({error}); copy or save the model again"
        ) from error


def has_head(folder: str | Path) -> bool:
    """True where the checkpoint holds a trained classifier."""
    for path in weight_files(Path(folder)):
        with safe_open(path, framework="pt") as weights:
            if any(name.startswith("classifier.") for name in weights.keys()):  # noqa: SIM118 - not a dict
                return True
    return False


def load_model(
    folder: str | Path,
    *,
    labels: Sequence[str] | None = None,
    attention: Attention = "short_products",
    make_head: bool = True,
    other_names: Literal["refuse", "new head"] = "refuse",
) -> PreTrainedModel:
    """The classifier in `folder` in fp32 and eval mode; never runs code from the folder.

    Args:
        labels: class names in the order of their ids. A head with the same classes in another order is put in this
            order; a head with default names is given these; where there is no head, or one with another count, a new
            one is drawn from torch's random numbers. None takes the head as it is.
        attention: `short_products` is the fastest to train and score with, `sdpa` is what transformers opens by itself,
            `eager` is what ONNX export needs; `eager` wherever the family has no other.
        make_head: False refuses where a new head would be drawn; for models that must have been trained.
        other_names: what becomes of a head whose classes have other names than `labels`; `new head` is for training.
    Raises: InputError for pickled or missing weights, weights that do not fit config.json, or other class names.
    """
    folder = Path(folder)
    weight_files(folder)
    written = read_config(folder)
    headed = has_head(folder)
    if labels is None and not headed:
        raise InputError(f"{folder} has no trained classifier; give labels to make one, and train it")
    names = config_labels(written)
    renamed = other_names == "new head" and labels is not None and not _same_classes(names, labels)
    fresh = labels is not None and (not headed or len(labels) != len(names) or renamed)
    if labels is not None and fresh and not make_head:
        found = f"a classifier for {', '.join(names)}" if headed else "no trained classifier"
        raise InputError(f"{folder} has {found}, but the rows' classes are {', '.join(labels)}; fine-tune it on them")
    count = len(labels) if labels is not None and fresh else len(names)
    with quiet_transformers():
        model, report = _open(folder, written, attention, count)
    _check_report(folder, report, fresh=fresh, headed=headed)
    if labels is not None:
        if renamed:
            _draw_head(model)
        elif not fresh:
            _order_head(model, names, labels, folder)
        set_labels(model, labels)
    return cast(PreTrainedModel, model.eval())


def _open(folder: Path, written: Mapping[str, Any], attention: str, count: int) -> tuple[Any, Mapping[str, Any]]:
    kin = uneven_family(str(written.get("model_type", "")))
    try:
        if kin is not None:
            config: Any = kin.config.from_pretrained(folder)
            family: Any = kin.classifier
        else:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            family = TasksManager.get_model_class_for_task("text-classification", model_type=config.model_type)
        config.num_labels = count
        extra = {} if kin is not None else {"trust_remote_code": False}
        if not _concrete(family, config)._supports_sdpa:
            attention = "eager"
        opened: tuple[Any, Mapping[str, Any]] = family.from_pretrained(
            folder, config=config, attn_implementation=attention, dtype=torch.float32, use_safetensors=True,
            ignore_mismatched_sizes=True, output_loading_info=True, **extra,
        )  # fmt: skip
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} cannot be opened as a text classifier: {error}") from error
    return opened


def _concrete(family: Any, config: Any) -> Any:
    """The class that an Auto class opens for `config`; a class that is none is itself."""
    mapping = getattr(family, "_model_mapping", None)
    return family if mapping is None else mapping[type(config)]


def _check_report(folder: Path, report: Mapping[str, Any], *, fresh: bool, headed: bool) -> None:
    """Refuse weights that transformers would have drawn at random without a word."""
    allowed = ("classifier.",) if headed else ("classifier.", "pre_classifier.", "bert.pooler.", "mpnet.pooler.")
    mismatched = [entry[0] if isinstance(entry, tuple) else entry for entry in report["mismatched_keys"]]
    lost = [name for name in (*report["missing_keys"], *mismatched) if not (fresh and name.startswith(allowed))]
    if lost:
        raise InputError(
            f"{folder}: the weights do not fit config.json: {', '.join(sorted(lost)[:3])}"
            f"{f' and {len(lost) - 3} more' if len(lost) > 3 else ''} would be random; save the model again"
        )


def _is_unnamed(names: Sequence[str]) -> bool:
    return all(name.startswith("LABEL_") for name in names)


def _same_classes(names: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether a head answers these classes, in any order and case, or has no names of its own."""
    return _is_unnamed(names) or {name.casefold() for name in names} == {label.casefold() for label in labels}


def _draw_head(model: Any) -> None:
    """Random weights in the classifier, as transformers draws those of a new one."""
    for module in model.classifier.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=model.config.initializer_range)
            nn.init.zeros_(module.bias)


def _order_head(model: Any, names: Sequence[str], labels: Sequence[str], folder: Path) -> None:
    """Permute the classifier's rows where the same classes stand in another order."""
    if _is_unnamed(names):
        return
    known = {name.casefold(): index for index, name in enumerate(names)}
    if not _same_classes(names, labels):
        raise InputError(
            f"{folder} answers {', '.join(names)}, but the rows' classes are {', '.join(labels)}; "
            "name the classes as the model does (data.labels, label.bins)"
        )
    order = [known[label.casefold()] for label in labels]
    if order == sorted(order):
        return
    head = _answering(model)
    if head is None:
        raise InputError(f"{folder}: write data.labels in the model's order, {', '.join(names)}")
    with torch.no_grad():
        head.weight.copy_(head.weight[order].clone())
        head.bias.copy_(head.bias[order].clone())


def _answering(model: Any) -> nn.Linear | None:
    """The projection with one row a class, the last of a classifier that has several; None where it is not found."""
    linears = [part for part in getattr(model, "classifier", nn.Module()).modules() if isinstance(part, nn.Linear)]
    return linears[-1] if linears else None


def set_labels(model: PreTrainedModel, labels: Sequence[str]) -> None:
    """Write class names, in the order of their ids, into the model's config."""
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: index for index, label in enumerate(labels)}


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Put the tokenizer of `source` into `folder`, made fast (tokenizer.json) where it was not."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file() and (source / name).resolve() != (folder / name).resolve():
            shutil.copyfile(source / name, folder / name)
    if (folder / "tokenizer.json").is_file():
        return
    if not any((source / name).is_file() for name in VOCABULARIES):
        raise InputError(f"{source} holds no tokenizer.json and no vocabulary to make one of; add one of them")
    try:
        with quiet_transformers():
            AutoTokenizer.from_pretrained(source, use_fast=True, trust_remote_code=False).save_pretrained(folder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(f"{source} holds no tokenizer.json and none can be made from its files: {error}") from error
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{source} holds no tokenizer.json and none can be made from its files; add one")


def model_logits(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits of `model` in eval mode without gradients, on the model's device; its mode is put back."""
    training, device = model.training, next(model.parameters()).device
    with torch.inference_mode():
        given = {name: value.to(device) for name, value in model_inputs(model, inputs).items()}
        logits: Tensor = model.eval()(**given).logits
    model.train(training)
    return logits


def save_model(
    model: PreTrainedModel, folder: str | Path, *, tokenizer_from: Path, manifest: Manifest, probe: Mapping[str, Tensor]
) -> Path:
    """`folder`, holding safetensors, config, tokenizer and compressor.json, after it was opened and compared.

    Files of an earlier model in the folder are removed.

    Args:
        manifest: its `shapes` are replaced by the model's true ones, its `labels` go to config.json.
        probe: inputs (input_ids and so on) on which model and reloaded model must agree to 1e-5.
    Raises: InputError where the folder holds pickles; StageError when the reloaded model answers otherwise.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pickles = [path.name for pattern in PICKLES for path in folder.glob(pattern)]
    if pickles:
        names = ", ".join(sorted(pickles))
        raise InputError(f"{folder} holds pickles ({names}); only safetensors are saved: empty it first")
    _remove_leftovers(folder, tokenizer_from=Path(tokenizer_from))
    set_labels(model, manifest.labels)
    with quiet_transformers():
        model.save_pretrained(folder)
    kin = uneven_family(model.config.model_type)
    if kin is not None:
        config = {**read_config(folder), "auto_map": kin.auto_map}
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        shutil.copyfile(Path(pruned_modeling.__file__), folder / "pruned_modeling.py")
    copy_tokenizer(Path(tokenizer_from), folder)
    replace(manifest, shapes=shapes(model)).write(folder)
    check_reload(model, folder, probe)
    return folder


def _remove_leftovers(folder: Path, *, tokenizer_from: Path) -> None:
    """Take an earlier model out of `folder`; predict.py only where compressor.json shows that it is ours."""
    patterns = list(LEFTOVERS)
    if (folder / MANIFEST_NAME).is_file():
        patterns.append("predict.py")
    if tokenizer_from.resolve() != folder.resolve():
        patterns.extend(TOKENIZER_FILES)
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        path.unlink()


def check_reload(model: PreTrainedModel, folder: Path, probe: Mapping[str, Tensor]) -> float:
    """The largest difference of a logit between `model` and what `folder` gives back; StageError above 1e-5."""
    attention = model.config._attn_implementation
    again = load_model(folder, attention=cast(Attention, attention) if attention in get_args(Attention) else "sdpa")
    again.to(next(model.parameters()).device)
    difference = float((model_logits(model, probe) - model_logits(again, probe)).abs().max())
    if not difference <= RELOAD_TOLERANCE:
        raise StageError(
            f"{folder} does not give back the model that was saved: logits differ by {difference:.3g}, at most "
            f"{RELOAD_TOLERANCE:g} is right; check the disk and the installed transformers"
        )
    return difference
