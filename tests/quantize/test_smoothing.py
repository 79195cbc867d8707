from dataclasses import replace

import numpy as np
import onnx
import pytest
from model_folders import TEXTS, data_of, write_classifier
from onnx import numpy_helper

from compressor.data.encode import open_encoder
from compressor.data.encoded import collate
from compressor.errors import InputError
from compressor.export.exporter import Exporter
from compressor.quantize.dynamic import dynamic, write_int8
from compressor.quantize.material import Material
from compressor.quantize.settings import Smooth
from compressor.quantize.smoothing import round_row, rounding_error, smooth, smoothed
from compressor.quantize.switches import fit, gelu, hidden_layers, turn_down
from compressor.runtime.onnx import OnnxEngine


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_classifier):
    source = write_classifier(tmp_path_factory.mktemp("source") / "model", tiny_classifier)
    return Exporter(source, data=data_of(TEXTS)).export(tmp_path_factory.mktemp("fp32") / "final")


@pytest.fixture(scope="module")
def rows(folder):
    encoder = open_encoder(folder, 64)
    encoded = encoder.encode(TEXTS)
    return [collate(encoded, [row], encoder.pad_id) for row in range(len(TEXTS))]


@pytest.fixture(scope="module")
def uneven(folder):
    """The fused graph with one channel of a normalization forty times as large as it was, and read as before."""
    model = onnx.load(folder / "model.onnx")
    norm = next(node for node in model.graph.node if node.op_type == "SkipLayerNormalization")
    scale(model, norm.input[2], 5, 40.0)
    scale(model, norm.input[3], 5, 40.0)
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[0] == norm.output[0]:
            scale(model, node.input[1], 5, 1 / 40)
    return model


@pytest.fixture
def material(folder, rows, tmp_path):
    return Material(
        folder, None, raw=lambda: None, batches=lambda: iter(rows), reduce_range=False, seed=0, work=tmp_path
    )


def scale(model, name, place, by):
    stored = next(each for each in model.graph.initializer if each.name == name)
    values = numpy_helper.to_array(stored).copy()
    values[place] *= by
    stored.CopyFrom(numpy_helper.from_array(values, name))


def answers(model, rows):
    engine = OnnxEngine(model.SerializeToString(), threads=1, precise=True)
    return np.concatenate([engine.logits(inputs) for inputs in rows])


def error(model, rows, exact):
    return np.sqrt(np.square(answers(write_int8(model, reduce_range=False), rows) - exact).mean())


@pytest.mark.parametrize("alpha", [None, 0.5, 1.0])
def test_a_smoothed_graph_answers_as_before(uneven, rows, alpha):
    found = smooth(uneven, rows, alpha=alpha)
    assert found.alphas
    np.testing.assert_allclose(answers(found.graph, rows), answers(uneven, rows), atol=1e-4)


def test_a_large_channel_no_longer_spoils_int8(uneven, rows):
    exact = answers(uneven, rows)
    assert error(smooth(uneven, rows).graph, rows, exact) < 0.7 * error(uneven, rows, exact)


def test_alpha_zero_leaves_inputs_alone(uneven, rows):
    assert not smooth(uneven, rows, alpha=0.0).alphas


def test_rounding_a_row_is_what_onnx_defines():
    values = np.random.default_rng(0).normal(1.0, 2.0, (5, 7)).astype(np.float32)
    steps = (values.max() - values.min()) / 255
    assert np.abs(round_row(values) - values).max() <= steps * 0.51
    assert not round_row(np.zeros((2, 2), np.float32)).any()
    weights = np.random.default_rng(1).normal(size=(7, 3)).astype(np.float32)
    assert 0 < rounding_error([values], weights, reduce_range=False) < 0.01


def half_of(model, half, given):
    """What a feed-forward half gives for rows, and its neurons' largest magnitudes."""
    stored = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    neurons = gelu(given @ stored[half.up] + stored[half.bias])
    return neurons @ stored[half.down], np.abs(neurons).max(axis=0)


@pytest.fixture
def switched(folder):
    """The fused graph with a neuron that is 25 at a row's first token and off elsewhere, and such rows."""
    model = onnx.load(folder / "model.onnx")
    half = hidden_layers(model)[0]
    stored = {each.name: each for each in model.graph.initializer}
    given = np.random.default_rng(0).normal(size=(200, 32)).astype(np.float32)
    given[:, 0] = np.where(np.arange(200) % 20 == 0, 1.0, -1.0)
    up, bias = (numpy_helper.to_array(stored[name]).copy() for name in (half.up, half.bias))
    up[:, 3], bias[3] = 0.01, 8.5
    up[0, 3] = 16.5
    stored[half.up].CopyFrom(numpy_helper.from_array(up, half.up))
    stored[half.bias].CopyFrom(numpy_helper.from_array(bias, half.bias))
    return model, half, given


def test_a_switch_computes_the_same_at_a_quarter_of_its_height():
    before = np.array([24.0, 24.2, -9.0, -7.5, -6.0, -11.0])
    slope, shift, gain, error_ = fit(before, top=24.2, ordinary=6.0)
    assert gelu(slope * before + shift).max() == pytest.approx(6.0)
    np.testing.assert_allclose(gain * gelu(slope * before + shift), gelu(before), atol=0.03)
    assert error_ < 1e-3


def test_a_neuron_that_takes_all_values_is_no_switch():
    before = np.linspace(-3.0, 24.0, 100)
    assert fit(before, top=24.0, ordinary=4.0)[3] > 1e-2


def test_gelu_is_that_of_torch():
    import torch

    values = np.linspace(-6, 6, 50)
    np.testing.assert_allclose(gelu(values), torch.nn.functional.gelu(torch.from_numpy(values)).numpy(), atol=1e-12)


def test_switches_are_turned_down_and_give_what_they_gave(switched):
    model, half, given = switched
    before, maxima = half_of(model, half, given)
    found, switches = turn_down(model, [half], {half.makes: maxima}, {half.reads: [given]})
    after, lower = half_of(found, half, given)
    assert [(each.neuron, each.product) for each in switches] == [(3, half.down)]
    assert maxima[3] > 24
    assert lower[3] == pytest.approx(np.sort(maxima)[-2], rel=1e-3)
    np.testing.assert_allclose(np.delete(lower, 3), np.delete(maxima, 3), rtol=1e-5)
    assert np.abs(after - before).max() < 0.05
    assert np.abs(before).max() > 1


def test_without_a_switch_the_graph_stays_as_it_is(folder):
    model = onnx.load(folder / "model.onnx")
    halves = hidden_layers(model)
    assert len(halves) == 2
    maxima = {half.makes: np.ones(64, np.float32) for half in halves}
    same, none = turn_down(model, halves, maxima, {half.reads: [np.ones((3, 32), np.float32)] for half in halves})
    assert none == ()
    assert same.SerializeToString() == model.SerializeToString()


def test_a_material_is_smoothed_once_and_said_once(material):
    told = []
    material = replace(material, decide=told.append)
    first = smoothed(material, Smooth(alpha=0.5))
    again = smoothed(replace(material, batches=lambda: pytest.fail("read twice")), Smooth(alpha=0.5))
    assert first.SerializeToString() == again.SerializeToString()
    (decision,) = told
    assert decision.kind == "smooth"
    assert decision.chosen.startswith("4 inputs evened")
    assert "alpha 0.5" in decision.because


def test_one_row_is_no_calibration(material, rows):
    with pytest.raises(InputError, match="calibration needs at least two different texts"):
        dynamic(replace(material, batches=lambda: iter(rows[:1])))
