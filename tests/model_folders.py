"""Model folders for the tests of export, runtime and quantize: tiny, with weights that tell rows apart."""

from collections.abc import Sequence
from pathlib import Path

from tiny import make_reviews

TEXTS = [text for text, _ in make_reviews(40, seed=5)]
STOCK = [(4, 64), (4, 64)]
UNEVEN = [(3, 10), (1, 64)]


def write_classifier(
    folder: Path,
    tokenizer_from: Path,
    *,
    layers: Sequence[tuple[int, int]] = tuple(STOCK),
    text: tuple[str, ...] = ("text",),
    seed: int = 0,
    spread: float = 0.3,
) -> Path:
    """A random classifier that calls half of TEXTS good, hidden 32, whose layers have these (heads, neurons)."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from compressor.data.encode import open_encoder
    from compressor.data.encoded import collate
    from compressor.model.encoders import save_model
    from compressor.model.manifest import Manifest
    from compressor.model.parts import shapes
    from compressor.model.pruned_modeling import PrunedBertConfig, PrunedBertForSequenceClassification

    encoder = open_encoder(tokenizer_from, 64)
    sizes = {
        "vocab_size": encoder.tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "num_hidden_layers": len(layers),
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    if all(layer == (4, 64) for layer in layers):
        model = BertForSequenceClassification(BertConfig(**sizes))
    else:
        shaped = [{"heads": heads, "ffn": ffn} for heads, ffn in layers]
        model = PrunedBertForSequenceClassification(PrunedBertConfig(**sizes, layer_shapes=shaped, head_size=8))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 1.0 if "embeddings" in name else spread, generator=generator)
            if name.endswith("LayerNorm.weight"):
                parameter.add_(1.0)
    manifest = Manifest(labels=("bad", "good"), shapes=shapes(model), text=text, max_tokens=64)
    encoded = encoder.encode(TEXTS)
    probe = {
        name: torch.from_numpy(array) for name, array in collate(encoded, range(len(encoded)), encoder.pad_id).items()
    }
    with torch.no_grad():
        margins = model.eval()(**probe).logits @ torch.tensor([-1.0, 1.0])
        scale = 3.0 / margins.std() if margins.std() > 1e-3 else 1.0
        model.classifier.weight *= scale
        model.classifier.bias *= scale
        model.classifier.bias[1] -= margins.median() * scale
    return save_model(model, folder, tokenizer_from=tokenizer_from, manifest=manifest, probe=probe)


def data_of(texts: Sequence[str]):
    """DataSets whose select rows are these texts."""
    from compressor.data.rows import DataSets, Rows
    from compressor.data.settings import Task

    rows = Rows(tuple(texts), tuple(number % 2 for number in range(len(texts))))
    return DataSets(
        task=Task(), labels=("bad", "good"), text_columns=("text",), max_tokens=64, train=rows, select=rows, test=None,
        unlabelled=Rows((), ()),
    )  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
