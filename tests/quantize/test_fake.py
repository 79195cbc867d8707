import numpy as np
import onnx
import pytest
import torch
from model_families import CONFIGS, write_family
from model_folders import TEXTS, UNEVEN, data_of, write_classifier
from onnx import TensorProto, helper
from torch import nn

from compressor.data.encode import collate, open_encoder
from compressor.export.exporter import Exporter
from compressor.model.encoders import load_model
from compressor.model.states import model_inputs
from compressor.quantize.dynamic import write_int8
from compressor.quantize.embeddings import round_rows as round_rows_of_tables
from compressor.quantize.fake import round_channels, round_embeddings, round_rows, rounding
from compressor.quantize.rounding import round_weights
from compressor.runtime.onnx import OnnxEngine, session

ROWS = [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.fixture(scope="module")
def source(tmp_path_factory, tiny_classifier):
    return write_classifier(tmp_path_factory.mktemp("source") / "model", tiny_classifier, layers=UNEVEN)


@pytest.fixture(scope="module")
def rows(source):
    encoder = open_encoder(source, 64)
    return encoder.encode(TEXTS), encoder.pad_id


def logits_of(model, rows, chosen):
    inputs = collate(rows[0], chosen, rows[1])
    with torch.no_grad():
        return model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.numpy()


def there_and_back(values):
    """The row after onnxruntime's DynamicQuantizeLinear and DequantizeLinear."""
    graph = helper.make_graph(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return session(model.SerializeToString(), threads=1).run(["y"], {"x": values})[0]


@pytest.mark.parametrize("shift", [-3.0, 0.0, 0.4, 5.0])
def test_rows_are_rounded_as_onnxruntime_rounds_each_of_them_alone(shift):
    values = torch.randn(6, 9, 16, generator=torch.Generator().manual_seed(0)) * 2 + shift
    values[3] = 0
    expected = np.concatenate([there_and_back(row[None].numpy()) for row in values])
    # an input in the middle of two steps may fall to either side
    steps = (values.amax((1, 2)).clamp(min=0) - values.amin((1, 2)).clamp(max=0))[:, None, None].numpy() / 255
    difference = np.abs(round_rows(values).numpy() - expected)
    assert (difference <= steps * 1.001).all()
    assert (difference <= 1e-5).mean() > 0.995
    flat = round_rows(values[:, 0])
    assert np.abs(flat[1].numpy() - there_and_back(values[1, :1].numpy())[0]).max() <= 1e-5


def test_padding_changes_no_range():
    values = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([values, torch.full((2, 3, 8), 100.0)], dim=1)
    mask = torch.tensor([[1] * 5 + [0] * 3] * 2)
    torch.testing.assert_close(round_rows(padded, mask)[:, :5], round_rows(values), rtol=0, atol=0)


@pytest.mark.parametrize("reduce_range", [True, False])
@pytest.mark.parametrize("inputs", [33, 34])
def test_weights_are_rounded_as_those_of_the_file(reduce_range, inputs):
    weight = torch.randn(7, inputs, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    steps, size = round_weights(weight.numpy().T, reduce_range=reduce_range)
    expected = (steps * size).T
    found = round_channels(weight, reduce_range=reduce_range).numpy()
    # a weight in the middle of two steps may fall to either side
    assert (np.abs(found - expected) <= 1.001 * size[:, None]).all()
    assert (np.abs(found - expected) <= 1e-6).mean() > 0.99


def test_embeddings_are_rounded_as_those_of_the_file():
    table = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    table[0] *= 1000
    table[1] = 0
    steps, codes, sizes = round_rows_of_tables(table.numpy())
    found = round_embeddings(table.view(2, 3, 16), torch.from_numpy(sizes)).view(6, 16).numpy()
    np.testing.assert_allclose(found, steps * sizes[codes], rtol=1e-6)


def test_gradients_pass_as_if_nothing_were_rounded():
    values = torch.randn(2, 5, 8, requires_grad=True)
    weight = torch.randn(4, 8, requires_grad=True)
    ahead = torch.randn(2, 5, 4)
    (nn.functional.linear(round_rows(values), round_channels(weight, reduce_range=True)) * ahead).sum().backward()
    torch.testing.assert_close(values.grad, ahead @ round_channels(weight.detach(), reduce_range=True))
    torch.testing.assert_close(weight.grad, torch.einsum("blo,bli->oi", ahead, round_rows(values.detach())))


def test_a_model_inside_rounds_and_outside_is_as_it_was(source, rows):
    model = load_model(source)
    plain, before = logits_of(model, rows, ROWS), {name: each.clone() for name, each in model.state_dict().items()}
    with rounding(model, reduce_range=True):
        inside = logits_of(model, rows, ROWS)
        assert set(model.state_dict()) == set(before)
    assert np.abs(inside - plain).max() > 1e-3
    np.testing.assert_array_equal(logits_of(model, rows, ROWS), plain)
    for name, each in model.state_dict().items():
        torch.testing.assert_close(each, before[name], rtol=0, atol=0)


def test_a_row_is_rounded_alike_alone_and_in_a_padded_batch(source, rows):
    model = load_model(source)
    with rounding(model, reduce_range=False):
        together = logits_of(model, rows, ROWS)
        alone = np.concatenate([logits_of(model, rows, [row]) for row in ROWS])
    # a value between two steps may fall to either side when sums differ in their last bit
    assert np.abs(together - alone).max() < 0.1
    assert np.median(np.abs(together - alone)) < 1e-4


def test_every_weight_gets_a_gradient(source, rows):
    model = load_model(source).train()
    inputs = collate(rows[0], ROWS, rows[1])
    with rounding(model, reduce_range=True):
        model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert model.bert.encoder.layer[1].output.dense.weight.grad.abs().max() > 0


@pytest.mark.parametrize("reduce_range", [True, False])
def test_logits_are_those_of_the_int8_file_far_closer_than_fp32_is(source, rows, tmp_path, reduce_range):
    folder = Exporter(source, data=data_of(TEXTS)).export(tmp_path / "fp32")
    graph = write_int8(onnx.load(folder / "model.onnx"), reduce_range=reduce_range)
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("QAttention") == 2
    assert not {"MatMul", "Gemm", "Attention"} & set(kinds)
    engine = OnnxEngine(graph.SerializeToString(), threads=1, precise=True)
    int8 = np.concatenate([engine.logits(collate(rows[0], [row], rows[1])) for row in range(len(TEXTS))])
    model = load_model(source)
    fp32 = logits_of(model, rows, range(len(TEXTS)))
    with rounding(model, reduce_range=reduce_range):
        faked = logits_of(model, rows, range(len(TEXTS)))
    assert np.median(np.abs(faked - int8)) < 1e-4
    assert np.sqrt(np.mean((faked - int8) ** 2)) < 0.2 * np.sqrt(np.mean((fp32 - int8) ** 2))


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_every_family_rounds_its_projections_and_words(tmp_path, kind):
    model = load_model(write_family(tmp_path / "model", kind))
    encoder = open_encoder(tmp_path / "model", 64)
    inputs = {
        name: torch.from_numpy(each) for name, each in collate(encoder.encode(TEXTS), ROWS, encoder.pad_id).items()
    }
    with rounding(model, reduce_range=False), torch.no_grad():
        rounded = model(**model_inputs(model, inputs)).logits
        words = model.get_input_embeddings()(inputs["input_ids"])
    with torch.no_grad():
        plain = model(**model_inputs(model, inputs)).logits
        exact = model.get_input_embeddings()(inputs["input_ids"])
    assert 0 < (words - exact).abs().max() < exact.abs().max() / 200
    assert 0 < (rounded - plain).abs().max() < plain.std()
