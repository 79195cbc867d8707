import pytest

from compressor.errors import InputError
from compressor.sources.models import looks_local, peek_model, resolve_model
from compressor.sources.settings import ModelSource


def folder_with(path, *names):
    path.mkdir(parents=True)
    for name in names:
        (path / name).touch()
    return path


def test_a_folder_is_found_from_the_base(tmp_path):
    folder = folder_with(tmp_path / "models" / "mine", "config.json", "model.safetensors")
    for path in ("models/mine", "./models/mine", str(folder)):
        assert resolve_model(ModelSource(path=path), base=tmp_path).samefile(folder)
        assert peek_model(ModelSource(path=path), tmp_path).samefile(folder)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["config.json", "pytorch_model.bin"],
            r"holds its weights as a pickle \(pytorch_model\.bin\).*convert to safetensors",
        ),
        (["config.json"], r"holds neither \*\.safetensors nor model\.onnx"),
        (["model.safetensors"], r"holds no config\.json"),
    ],
)
def test_a_folder_without_safe_weights_is_refused(tmp_path, names, message):
    folder_with(tmp_path / "m", *names)
    with pytest.raises(InputError, match=message):
        resolve_model(ModelSource(path="./m"), base=tmp_path)


@pytest.mark.parametrize("path", ["./gone", "~/gone-for-good", "~no-such-user/x", "a/b/c", "/gone", "/" + "x" * 5000])
def test_a_path_that_can_only_be_local_is_reported_without_the_network(tmp_path, path, monkeypatch):
    monkeypatch.setattr("compressor.sources.models._snapshot", lambda *_a, **_k: pytest.fail("used the network"))
    assert looks_local(path, tmp_path)
    assert peek_model(ModelSource(path=path), tmp_path) is None
    with pytest.raises(
        InputError, match=rf"^{path} does not exist \(looked for .*\); name the folder of a saved model"
    ):
        resolve_model(ModelSource(path=path), base=tmp_path)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(InputError, match=r"weights\.safetensors is a file, not a folder"):
        resolve_model(ModelSource(path="weights.safetensors"), base=tmp_path)


def test_a_hub_model_that_is_not_cached_is_reported_offline(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = ModelSource(path="nobody/no-such-model@main")
    assert peek_model(source, tmp_path) is None
    with pytest.raises(
        InputError, match="nobody/no-such-model@main is not a folder here, and the hub cannot be reached"
    ):
        resolve_model(source, base=tmp_path)


def test_a_digest_applies_to_packages_alone(tmp_path):
    with pytest.raises(InputError, match="sha256 applies to pypi:// alone; pin a hub model as ORG/NAME@REVISION"):
        resolve_model(ModelSource(path="org/name", sha256="a" * 64), base=tmp_path)
