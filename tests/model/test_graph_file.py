"""ONNX files from elsewhere: refused with a reason, never followed out of their folder, never a traceback."""

import json
import os
import shutil

import numpy as np
import onnx
import pytest
from model_folders import TEXTS, write_classifier
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import InputError
from compressor.export.exporter import Exporter
from compressor.export.halves import to_half
from compressor.model import graph_file
from compressor.model.graph_file import folder_precision, model_file, open_graph, precision_of, require_bert
from compressor.runtime.predictor import load

PLACES = {"outside": "../secret.bin", "absolute": "/etc/passwd", "windows": "..\\secret.bin", "nothing": ""}


@pytest.fixture(scope="module")
def final(tmp_path_factory, tiny_classifier):
    root = tmp_path_factory.mktemp("hostile")
    return Exporter(write_classifier(root / "model", tiny_classifier)).export(root / "final")


@pytest.fixture
def copy(final, tmp_path):
    return shutil.copytree(final, tmp_path / "copy")


def stored(folder, location, *, size=64, length=None, dims=(16,)):
    """`folder / model.onnx`, a sum with weights that are said to lie at `location`."""
    folder.mkdir(exist_ok=True)
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(size if length is None else length))):
        weights.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [16])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def test_a_whole_file_is_opened_as_onnx_opens_it(final):
    assert open_graph(final / "model.onnx") == onnx.load(final / "model.onnx")
    require_bert(open_graph(final / "model.onnx"), where="x")


@pytest.mark.parametrize("place", PLACES)
def test_weights_outside_the_folder_are_never_read(tmp_path, place):
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    file = stored(tmp_path / "model", PLACES[place])
    with pytest.raises(InputError, match="outside the model's folder, which is never read; export the model again"):
        open_graph(file, weights=False)


def test_weights_behind_a_link_are_never_read(tmp_path):
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    file = stored(tmp_path / "model", "weights.bin")
    os.symlink("../secret.bin", tmp_path / "model" / "weights.bin")
    with pytest.raises(InputError, match="outside the model's folder"):
        open_graph(file)
    (tmp_path / "model" / "weights.bin").unlink()
    (tmp_path / "model" / "real.bin").write_bytes(bytes(64))
    os.symlink("real.bin", tmp_path / "model" / "weights.bin")
    with pytest.raises(InputError, match=r"lie behind the link 'weights.bin'; put the file itself there"):
        open_graph(file)


def test_weights_that_are_gone_short_or_of_another_size_are_named(tmp_path):
    file = stored(tmp_path / "model", "weights.bin")
    with pytest.raises(InputError, match=r"lie in 'weights.bin', which is not there; copy it beside the file"):
        open_graph(file)
    (tmp_path / "model" / "weights.bin").write_bytes(bytes(63))
    with pytest.raises(InputError, match=r"the weights w end at byte 64 of weights.bin, which has 63"):
        open_graph(file)
    file = stored(tmp_path / "other", "weights.bin", dims=(2**40,))
    (tmp_path / "other" / "weights.bin").write_bytes(bytes(64))
    with pytest.raises(InputError, match=r"of shape \[1099511627776\] take 4398046511104 bytes, the file says 64"):
        open_graph(file)


def test_weights_beside_the_file_are_read(tmp_path):
    file = stored(tmp_path / "model", "weights.bin")
    values = np.arange(16, dtype=np.float32)
    (tmp_path / "model" / "weights.bin").write_bytes(values.tobytes())
    assert numpy_helper.to_array(open_graph(file).graph.initializer[0]).tolist() == values.tolist()


def test_a_file_cut_at_any_place_is_refused_with_a_message(final, copy):
    whole = (final / "model.onnx").read_bytes()
    rng = np.random.default_rng(0)
    places = {0, 1, 2, 5, 100, len(whole) // 2, *(int(each) for each in rng.integers(0, len(whole) - 200, 60))}
    for place in sorted(places):
        (copy / "model.onnx").write_bytes(whole[:place])
        with pytest.raises(InputError, match="truncated or no ONNX file"):
            open_graph(copy / "model.onnx")
        with pytest.raises(InputError):
            load(copy, threads=1, spinning=False)


def test_a_file_with_changed_bytes_is_opened_or_refused_but_never_a_traceback(final, copy):
    whole = (final / "model.onnx").read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(60):
        broken = bytearray(whole)
        for place in rng.integers(0, len(whole), 20):
            broken[place] = int(rng.integers(0, 256))
        (copy / "model.onnx").write_bytes(bytes(broken))
        try:
            open_graph(copy / "model.onnx")
        except InputError:
            refused += 1
    assert refused


def test_other_bytes_are_no_onnx_file(tmp_path):
    for content in (b"", b"\x80\x04K\x01.", b"PK\x03\x04", b"{}", os.urandom(500), b"version https://git-lfs"):
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(InputError, match=r"model\.onnx is truncated or no ONNX file .*copy"):
            open_graph(tmp_path / "model.onnx")
    with pytest.raises(InputError, match="is not there or is no file"):
        open_graph(tmp_path)


def test_a_file_over_the_limit_is_refused_before_it_is_read(final, monkeypatch):
    monkeypatch.setattr(graph_file, "LARGEST_FILE", 1000)
    with pytest.raises(
        InputError, match=r"GB, more than the 0\.0 GB that ONNX allows a file; save it with its weights"
    ):
        open_graph(final / "model.onnx")


def test_custom_operators_are_refused_inside_branches_too(copy):
    model = onnx.load(copy / "model.onnx")
    model.graph.node[0].domain = "ai.evil"
    kind = model.graph.node[0].op_type
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=rf"uses ai\.evil\.{kind}, which onnxruntime does not bring along"):
        open_graph(copy / "model.onnx")
    inner = helper.make_graph([helper.make_node("Steal", [], ["z"], domain="ai.evil")], "inner", [], [])
    outer = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    model = helper.make_model(helper.make_graph([outer], "g", [], [helper.make_tensor_value_info("y", 1, [1])]))
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"uses ai\.evil\.Steal"):
        open_graph(copy / "model.onnx")
    with pytest.raises(InputError, match=r"onnxruntime cannot read|no input_ids|the graph takes"):
        load(copy, spinning=False)


def renamed(copy, part, name):
    model = onnx.load(copy / "model.onnx")
    given = getattr(model.graph, part)[0]
    for node in model.graph.node:
        for place, each in enumerate(node.input):
            node.input[place] = name if each == given.name else each
        for place, each in enumerate(node.output):
            node.output[place] = name if each == given.name else each
    given.name = name
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    return copy


def test_a_model_that_is_no_text_classifier_is_refused_wherever_it_is_opened(copy, tmp_path):
    renamed(copy, "output", "last_hidden_state")
    for opens in (load, lambda folder: Exporter(folder).export(tmp_path / "out")):
        with pytest.raises(
            InputError, match="gives last_hidden_state and no logits; export it for text-classification"
        ):
            opens(copy)
    shutil.copyfile(stored(tmp_path / "sum", "w.bin"), copy / "model.onnx")
    (copy / "w.bin").write_bytes(bytes(64))
    for opens in (load, lambda folder: Exporter(folder).export(tmp_path / "out")):
        with pytest.raises(InputError, match="the graph takes x, unknown here; export a text classifier"):
            opens(copy)
    assert not (tmp_path / "out").exists()


def test_a_classifier_without_attention_is_no_bert(copy):
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
            helper.make_node("Identity", ["rows"], ["logits"]),
        ],
        "g",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "l"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((30, 2), dtype=np.float32), "table")],
    )
    with pytest.raises(InputError, match="the graph has no attention, so it is no BERT; export a BERT text classifier"):
        require_bert(helper.make_model(graph), where="x")


def test_inputs_of_another_type_are_refused_when_opened(copy):
    model = onnx.load(copy / "model.onnx")
    for value in model.graph.input:
        value.type.tensor_type.elem_type = TensorProto.INT32
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError):
        load(copy)


def test_the_graph_of_a_folder_is_found_flat_and_below_onnx(copy):
    assert model_file(copy) == copy / "model.onnx"
    (copy / "onnx").mkdir()
    (copy / "model.onnx").replace(copy / "onnx" / "model.onnx")
    assert model_file(copy) == copy / "onnx" / "model.onnx"
    content = json.loads((copy / "compressor.json").read_text())
    (copy / "compressor.json").write_text(json.dumps({**content, "precision": "int8"}))
    assert model_file(copy) is None
    (copy / "onnx" / "model_quantized.onnx").write_bytes(b"")
    assert model_file(copy) == copy / "onnx" / "model_quantized.onnx"


def test_the_precision_of_a_graph_is_that_of_most_of_its_weights_or_of_its_operators(final):
    model = open_graph(final / "model.onnx")
    assert precision_of(model.graph) == "fp32"
    assert {name: precision_of(to_half(model, name).graph) for name in ("fp16", "bf16")} == {
        "fp16": "fp16", "bf16": "bf16",
    }  # fmt: skip
    for kind in ("MatMulIntegerToFloat", "MatMulNBits", "DequantizeLinear"):
        made = onnx.ModelProto()
        made.CopyFrom(model)
        made.graph.node.append(helper.make_node(kind, ["a"], ["b"]))
        assert precision_of(made.graph) == "int8"


def test_a_folder_has_the_precision_that_its_manifest_says_and_without_one_its_graphs(copy):
    model = to_half(open_graph(copy / "model.onnx"), "fp16")
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    assert folder_precision(copy) == "fp32"
    (copy / "compressor.json").unlink()
    assert folder_precision(copy) == "fp16"


def test_weights_in_a_file_of_their_own_are_written_into_the_exported_one(copy, final, tmp_path):
    model = onnx.load(copy / "model.onnx")
    (copy / "model.onnx").unlink()
    onnx.save(model, copy / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=100)
    assert (copy / "weights.bin").is_file()
    out = Exporter(copy).export(tmp_path / "out")
    (copy / "weights.bin").unlink()
    np.testing.assert_array_equal(load(out).logits(TEXTS[:5]), load(final).logits(TEXTS[:5]))
