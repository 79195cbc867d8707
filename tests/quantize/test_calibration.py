"""Passing rows through a graph and keeping summaries, beside keeping everything and onnxruntime's own calibrators."""

import numpy as np
import onnx
import pytest
from model_folders import TEXTS, data_of, write_classifier

from compressor.data.encode import collate, open_encoder
from compressor.errors import InputError
from compressor.export.exporter import Exporter, input_names, trace
from compressor.model.encoders import load_model
from compressor.quantize.calibration import calibrate, observe, spellings, summaries
from compressor.quantize.ranges import BINS
from compressor.quantize.settings import Calibrate
from compressor.quantize.static import quantizable
from compressor.runtime.onnx import session


@pytest.fixture(scope="module")
def source(tmp_path_factory, tiny_classifier):
    return write_classifier(tmp_path_factory.mktemp("calibration") / "source", tiny_classifier)


@pytest.fixture(scope="module")
def folder(source):
    return Exporter(source, data=data_of(TEXTS)).export(source.parent / "fp32")


@pytest.fixture(scope="module")
def traced(source):
    model = load_model(source, attention="eager").eval()
    return trace(model, input_names(model))


@pytest.fixture(scope="module")
def graph(folder):
    return onnx.load(folder / "model.onnx")


@pytest.fixture(scope="module")
def batches(folder):
    encoder = open_encoder(folder, 64)
    encoded = encoder.encode(TEXTS)
    return [collate(encoded, [row], encoder.pad_id) for row in range(len(encoded))]


@pytest.fixture(scope="module")
def tensors(graph):
    return sorted({node.input[0] for node in quantizable(graph)})


@pytest.fixture(scope="module")
def kept(graph, batches, tensors):
    """Every value of every tensor."""
    values = {name: [] for name in tensors}
    observe(graph, tensors, batches, lambda name, found: values[name].append(found.copy()))
    return {name: np.concatenate([each.ravel() for each in found]) for name, found in values.items()}


def test_tensors_read_by_products_are_seen_whole_and_no_others(kept, tensors, batches):
    assert list(kept) == tensors
    tokens = sum(inputs["input_ids"].size for inputs in batches)
    assert {len(each) for each in kept.values()} == {tokens * 32, tokens * 64, len(batches) * 32}


def test_the_order_of_the_rows_changes_only_the_moving_average(graph, batches, tensors):
    for method in ("minmax", "percentile", "entropy", "mse"):
        settings = Calibrate(method=method)
        assert calibrate(graph, tensors, batches, settings) == calibrate(graph, tensors, batches[::-1], settings)
    settings = Calibrate(method="moving_average", moving_average=0.5)
    assert calibrate(graph, tensors, batches, settings) != calibrate(graph, tensors, batches[::-1], settings)


def test_percentiles_are_those_of_all_values_kept(graph, batches, tensors, kept):
    seen = summaries(graph, tensors, batches)
    found = calibrate(graph, tensors, batches, Calibrate(method="percentile", percentile=99.0))
    for name in tensors:
        low, high = np.percentile(kept[name], [0.5, 99.5], method="inverted_cdf")
        assert found[name].low == pytest.approx(low, abs=seen[name].histogram.width)
        assert found[name].high == pytest.approx(high, abs=seen[name].histogram.width)


def test_what_is_kept_does_not_grow_with_the_rows(graph, batches, tensors):
    few, many = (summaries(graph, tensors, batches * times) for times in (1, 4))
    for name in tensors:
        assert few[name].histogram.counts.nbytes == many[name].histogram.counts.nbytes == BINS * 8
        assert np.array_equal(few[name].histogram.counts * 4, many[name].histogram.counts)


def test_minmax_is_that_of_onnxruntimes_own_calibrator(traced, batches, tmp_path):
    from onnxruntime.quantization.calibrate import CalibrationDataReader, MinMaxCalibrater

    class Rows(CalibrationDataReader):
        def __init__(self):
            self.rows = iter(batches)

        def get_next(self):
            return next(self.rows, None)

    onnx.save(onnx.shape_inference.infer_shapes(traced), tmp_path / "model.onnx")
    theirs = MinMaxCalibrater(tmp_path / "model.onnx", ["MatMul", "Gemm"], str(tmp_path / "wider.onnx"))
    theirs.augment_graph()
    theirs.create_inference_session()
    theirs.collect_data(Rows())
    found = theirs.compute_data()
    names = sorted({node.input[0] for node in quantizable(traced)})
    ours = calibrate(traced, names, batches, Calibrate(method="minmax"))
    assert len(names) == 10
    for name in names:
        low, high = (float(each.item()) for each in found[name].range_value)
        assert (ours[name].low, ours[name].high) == pytest.approx((min(low, 0.0), max(high, 0.0)), abs=1e-5)


def test_one_row_is_refused(graph, batches, tensors):
    with pytest.raises(InputError, match=r"needs at least two different texts \(got 1 row\); give more rows in `data`"):
        calibrate(graph, tensors, batches[:1], Calibrate())
    with pytest.raises(InputError, match=r"got 0 rows\)"):
        calibrate(graph, tensors, [], Calibrate())


def test_rows_that_are_all_empty_are_refused(graph, folder, tensors):
    encoder = open_encoder(folder, 64)
    encoded = encoder.encode(["", "", ""])
    rows = [collate(encoded, [row], encoder.pad_id) for row in range(3)]
    with pytest.raises(InputError, match=r"got 3 rows, all alike or empty\).*from: both"):
        calibrate(graph, tensors, rows, Calibrate())


def test_a_row_that_makes_nan_is_named_with_the_tensor(graph, batches, tensors):
    broken = onnx.ModelProto()
    broken.CopyFrom(graph)
    spoiled = int(batches[3]["input_ids"][0, 1])
    clean = [inputs for inputs in batches if spoiled not in inputs["input_ids"]][:4]
    rows = [*clean, batches[3]]
    table = next(each for each in broken.graph.initializer if "word_embeddings" in each.name)
    values = onnx.numpy_helper.to_array(table).copy()
    values[spoiled] = np.nan
    table.CopyFrom(onnx.numpy_helper.from_array(values, table.name))
    first = min(tensors, key=lambda name: (name != "EmbedLayerNormalization_0_output", name))
    with pytest.raises(InputError, match=rf"calibration row {len(clean)} \(from 0\) makes tensor \S+ NaN or infinite"):
        calibrate(broken, [first], rows, Calibrate())


def test_the_row_is_found_within_a_batch():
    from compressor.quantize.calibration import require_finite

    values = np.zeros((3, 2, 4), np.float32)
    values[1, 0, 2] = np.inf
    with pytest.raises(InputError, match=r"calibration row 11 .* makes tensor x NaN or infinite"):
        require_finite(values, "x", first_row=10)


def test_padding_makes_no_row_different():
    ids, mask = np.array([[1, 2, 0], [1, 2, 9]]), np.array([[1, 1, 0], [1, 1, 0]])
    assert len(spellings({"input_ids": ids, "attention_mask": mask})) == 1
    assert len(spellings({"input_ids": ids})) == 2


def test_without_tensors_no_row_is_read(graph):
    def never():
        raise AssertionError
        yield

    assert calibrate(graph, [], never(), Calibrate()) == {}


def test_watching_changes_no_answer(graph, batches, tensors):
    from compressor.quantize.calibration import with_outputs

    plain, watched = session(graph.SerializeToString()), session(with_outputs(graph, [*tensors, "logits"]))
    np.testing.assert_allclose(plain.run(["logits"], batches[0])[0], watched.run(["logits"], batches[0])[0], atol=1e-5)
