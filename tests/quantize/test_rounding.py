import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.quantize.rounding import pair_sums, round_weights
from compressor.runtime.onnx import session

DRAW = np.random.default_rng(0)


@pytest.mark.parametrize("inputs", [1, 2, 7, 384])
def test_no_pair_of_neighbours_can_overflow_sixteen_bits(inputs):
    weights = DRAW.standard_t(3, (inputs, 50)).astype(np.float32)
    steps, _ = round_weights(weights, reduce_range=True)
    padded = np.concatenate([steps, np.zeros((inputs % 2, 50), np.int8)]).astype(int)
    for activations in ([255, 255], [255, 0], [0, 255]):
        sums = np.einsum("pko,k->po", padded.reshape(-1, 2, 50), activations)
        assert sums.min() >= -32768
        assert sums.max() <= 32767


def test_rounding_moves_no_weight_by_more_than_half_a_step():
    weights = DRAW.normal(size=(64, 20)).astype(np.float32)
    for reduce_range in (False, True):
        steps, size = round_weights(weights, reduce_range=reduce_range)
        assert np.abs(steps * size - weights).max() <= size.max() * 0.501
        assert np.abs(steps).max() <= 127


def test_pairs_keep_more_precision_than_seven_bits():
    weights = DRAW.normal(size=(384, 200)).astype(np.float32)
    _, pairs = round_weights(weights, reduce_range=True)
    _, full = round_weights(weights, reduce_range=False)
    seven = np.abs(weights).max(axis=0) / 64
    assert (pairs <= seven * 1.001).all()
    assert pairs.mean() < 0.75 * seven.mean()
    assert (pairs >= full).all()


def test_an_output_without_weights_stays_zero():
    steps, size = round_weights(np.zeros((4, 2), np.float32), reduce_range=True)
    assert not steps.any()
    assert np.isfinite(size).all()
    assert round_weights(np.zeros((0, 2), np.float32), reduce_range=True)[0].shape == (0, 2)


def test_pair_sums_are_those_of_a_loop():
    weights = DRAW.normal(size=(9, 5))
    wanted = []
    for column in weights.T:
        pairs = [column[at : at + 2] for at in range(0, 9, 2)]
        wanted.append(max(max(pair[pair > 0].sum(), -pair[pair < 0].sum()) for pair in pairs))
    np.testing.assert_allclose(pair_sums(weights), wanted)


@pytest.mark.parametrize("rows", [1, 2, 27])
@pytest.mark.parametrize("inputs", [6, 384])
def test_sums_are_exact_on_every_processor_even_for_the_largest_activations(rows, inputs):
    weights = DRAW.standard_t(2, (inputs, 48)).astype(np.float32)
    steps, _ = round_weights(weights, reduce_range=True)
    given = DRAW.choice(np.array([0, 255], np.uint8), (rows, inputs))
    answer = session(product(steps).SerializeToString(), threads=1).run(None, {"x": given})[0]
    np.testing.assert_array_equal(answer, given.astype(np.int32) @ steps.astype(np.int32))


def product(steps):
    """x @ steps in integers, as MatMulInteger."""
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["rows", steps.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, None)],
        [numpy_helper.from_array(steps, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
