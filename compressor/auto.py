"""After `import compressor.auto`, transformers' Auto classes open pruned models by themselves."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from compressor.model.pruned_modeling import PrunedBertConfig, PrunedBertForSequenceClassification, PrunedBertModel

AutoConfig.register(PrunedBertConfig.model_type, PrunedBertConfig, exist_ok=True)
AutoModel.register(PrunedBertConfig, PrunedBertModel, exist_ok=True)
AutoModelForSequenceClassification.register(PrunedBertConfig, PrunedBertForSequenceClassification, exist_ok=True)
