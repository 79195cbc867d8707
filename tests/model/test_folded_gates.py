import pytest
import torch
from families import FAMILIES, make

from compressor.model.gates import fold, gated
from compressor.model.parts import shapes
from compressor.model.surgery import Kept, cut


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_folded_gates_answer_as_the_gated_model_also_after_the_cut_of_those_at_zero(family: str):
    model = make(family)
    draw = torch.Generator().manual_seed(3)
    sizes = shapes(model).layers
    heads = [torch.rand(each.heads, generator=draw) for each in sizes]
    neurons = [torch.rand(each.ffn, generator=draw) for each in sizes]
    heads[1][0] = heads[2][-1] = 0.0
    neurons[0][::2] = 0.0
    kept = Kept(
        heads=tuple(tuple(gate.nonzero().flatten().tolist()) for gate in heads),
        neurons=tuple(tuple(gate.nonzero().flatten().tolist()) for gate in neurons),
        layers=tuple(range(len(sizes))),
    )
    inputs = {"input_ids": torch.randint(5, 60, (4, 12), generator=draw)}
    with torch.inference_mode():
        plain = model(**inputs).logits
        with gated(model, heads=heads, neurons=neurons, layers=[torch.ones(())] * len(sizes)):
            expected = model(**inputs).logits
    fold(model, heads=heads, neurons=neurons)
    made = cut(model, kept)
    with torch.inference_mode():
        folded, small = model(**inputs).logits, made(**inputs).logits
    assert float((expected - plain).abs().max()) > 1e-3
    assert float((folded - expected).abs().max()) < 1e-5
    assert float((small - expected).abs().max()) < 1e-5
