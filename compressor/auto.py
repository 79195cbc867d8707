"""After `import compressor.auto`, transformers' Auto classes open pruned models by themselves."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from compressor.model.families import FAMILIES

for family in FAMILIES.values():
    AutoConfig.register(family.config.model_type, family.config, exist_ok=True)
    AutoModel.register(family.config, family.encoder, exist_ok=True)
    AutoModelForSequenceClassification.register(family.config, family.classifier, exist_ok=True)
