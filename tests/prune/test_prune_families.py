"""Pruner works on every family whose parts are known: it scores, cuts, reconstructs, trains on and prunes again."""

from dataclasses import replace

import numpy as np
import pytest
from model_families import write_family

from compressor.export.exporter import export_onnx
from compressor.model.encoders import load_model
from compressor.model.families import FAMILIES
from compressor.model.footprint import macs
from compressor.model.manifest import LayerShape, read_config, read_manifest
from compressor.model.parts import shapes
from compressor.model.surgery import Kept, cut, fresh_model
from compressor.prune.latency_table import Place
from compressor.prune.pruner import Pruner
from compressor.prune.timing import scene_of, write_model
from compressor.runtime.predictor import load

RECOVER = {
    "train": {"steps": 2, "learning_rate": 1e-3},
    "match": [{"of": "logits"}, {"of": "hidden"}, {"of": "attention"}],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_every_family_is_pruned_twice_recovered_and_exported(tmp_path, rows, family):
    source = write_family(tmp_path / "source", family, labels=("bad", "good"), spread=0.1)
    settings = {"data": rows, "remove": {"heads": "taylor", "ffn": "taylor"}, "recover": RECOVER}
    once = Pruner(source, until={"macs": "0.6x"}, steps=2, **settings).fit(tmp_path / "once")
    twice = Pruner(once, until={"macs": "0.6x"}, teacher=source, **settings).fit(tmp_path / "twice")
    whole, first, second = (macs(shapes(load_model(folder))) for folder in (source, once, twice))
    assert 0 < second <= 0.6 * first <= 0.36 * whole
    assert read_config(twice)["model_type"] == f"pruned-{family}"
    assert read_manifest(twice).shapes == shapes(load_model(twice))
    texts = list(rows.select.texts[:12])
    parity = export_onnx(twice, tmp_path / "twice.onnx", texts=texts)
    np.testing.assert_allclose(load(twice, engine="torch").logits(texts), parity.logits, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_criterion_ranks_the_parts_of_every_family(tmp_path, rows, family):
    source = write_family(tmp_path / "source", family, labels=("bad", "good"), spread=0.1)
    remove = {"heads": "fisher", "ffn": "activation", "layers": "magnitude"}
    out = Pruner(source, data=rows, remove=remove, until={"macs": "0.7x"}, reconstruct=True).fit(tmp_path / "out")
    assert macs(shapes(load_model(out))) <= 0.7 * macs(shapes(load_model(source)))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_pruned_to_a_latency_by_a_table_of_its_own(tmp_path, rows, family):
    source = write_family(tmp_path / "source", family, labels=("bad", "good"), spread=0.1)
    model, scene = load_model(source), scene_of(source, rows, Place(), seed=1)
    sizes = shapes(model)
    key = scene.key(model)
    assert (key.family, key.activation) == (family, "gelu")
    assert scene.key(cut(model, Kept(((0, 1), (2,)), (tuple(range(64)),) * 2, (0, 1)))).family == family
    small = fresh_model(model, replace(sizes, layers=(LayerShape(2, 8, 20),) * 2), seed=0)
    timed = write_model(small, tmp_path / "timed", scene)
    assert load(timed, spinning=False).logits(scene.texts[:2]).shape == (2, 2)
    settings = {"data": rows, "remove": {"heads": "taylor", "ffn": "taylor"}, "until": {"latency": "0.7x"}}
    out = Pruner(source, smoke=True, **settings).fit(tmp_path / "out")
    assert macs(shapes(load_model(out))) < macs(sizes)
