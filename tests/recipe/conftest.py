import json
from pathlib import Path

import pytest

CONFIG = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "hidden_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "vocab_size": 30,
    "id2label": {"0": "negative", "1": "positive"},
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with rows, a teacher's config and room for recipes."""
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (teacher / "model.safetensors").write_bytes(b"")
    rows = "".join(f"{'good' if n % 2 else 'bad'} film {n},{'positive' if n % 2 else 'negative'}\n" for n in range(40))
    (tmp_path / "train.csv").write_text("text,label\n" + rows, encoding="utf-8")
    return tmp_path
