"""Libraries whose work would not be missed by another test's name: each is really asked."""

from pathlib import Path

import pytest


def test_optimum_names_the_model_class_and_the_sizes(tiny_classifier: Path, monkeypatch: pytest.MonkeyPatch):
    from optimum.exporters.tasks import TasksManager
    from optimum.utils import NormalizedConfigManager

    from compressor.model.encoders import load_model
    from compressor.model.parts import shapes

    asked = []
    choose, normal = TasksManager.get_model_class_for_task, NormalizedConfigManager.get_normalized_config_class

    def class_for(task, **more):
        asked.append(task)
        return choose(task, **more)

    def config_for(kind):
        asked.append(kind)
        return normal(kind)

    monkeypatch.setattr(TasksManager, "get_model_class_for_task", class_for)
    monkeypatch.setattr(NormalizedConfigManager, "get_normalized_config_class", config_for)
    assert shapes(load_model(tiny_classifier)).hidden == 32
    assert asked == ["text-classification", "bert"]


def test_rich_shows_progress_on_a_terminal():
    from rich.progress import Progress

    from compressor.cli.display import Bars

    bars = Bars()
    try:
        bars("student: distill", 3, 10)
        assert isinstance(bars.live, Progress)
        (task,) = bars.live.tasks
        assert (task.description, task.completed, task.total) == ("student: distill", 3, 10)
        bars("student: export", 0, None)
        assert [task.description for task in bars.live.tasks] == ["student: export"]
    finally:
        bars.close()


def test_onnxruntime_answers_for_an_exported_model(
    tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import onnxruntime

    from compressor.export.exporter import Exporter
    from compressor.runtime.predictor import load

    folder = Exporter(tiny_classifier).export(tmp_path / "out")
    made = []
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *given, **more: made.append(1) or session(*given, **more)
    )
    assert load(folder, spinning=False).logits(["a warm film"]).shape == (1, 2)
    assert made == [1]


def test_rows_longer_than_max_tokens_are_truncated_and_counted(desk: Path):
    from compressor.data.rows import open_data
    from compressor.runner.prepare import Prepared, check_rows

    data = open_data({"train": "reviews.csv", "text": "review", "label": "stars", "max_tokens": 8})
    long = sum(len(text.split()) + 2 > 8 for text in data.train.texts)
    assert 0 < long < len(data.train)
    assert check_rows(Prepared(data, desk / "my-bert"))["train"] == long
