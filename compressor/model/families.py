"""The families of encoders whose parts are known: their classes, and where a classifier keeps its ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from compressor.model import pruned_modeling
from compressor.model.pruned_modeling import BERT_PLACES, DISTILBERT_PLACES, MPNET_PLACES, Places

PRUNED = "pruned-"
"""What stands before a family's name in the model type of its models of uneven layers."""


@dataclass(frozen=True)
class Family:
    """One family; dotted names are those of modules, from the classifier."""

    places: Places
    stock_config: Any
    stock_classifier: Any
    config: Any
    """Class for uneven layers, as the next two."""
    encoder: Any
    classifier: Any
    dense: str
    """The projection between the first token's state and the answers."""
    answers: str
    """The projection with one row a class."""
    neurons: str = "intermediate_size"
    """What config.json calls the number of feed-forward neurons."""
    activation: str = "hidden_act"
    """What it calls their function."""

    @property
    def auto_map(self) -> dict[str, str]:
        """The config.json entry by which transformers opens uneven layers with the file beside it."""
        classes = {
            "AutoConfig": self.config,
            "AutoModel": self.encoder,
            "AutoModelForSequenceClassification": self.classifier,
        }
        return {auto: f"pruned_modeling.{found.__name__}" for auto, found in classes.items()}


FAMILIES: dict[str, Family] = {
    "bert": Family(
        places=BERT_PLACES,
        stock_config=BertConfig,
        stock_classifier=BertForSequenceClassification,
        config=pruned_modeling.PrunedBertConfig,
        encoder=pruned_modeling.PrunedBertModel,
        classifier=pruned_modeling.PrunedBertForSequenceClassification,
        dense="bert.pooler.dense",
        answers="classifier",
    ),
    "roberta": Family(
        places=BERT_PLACES,
        stock_config=RobertaConfig,
        stock_classifier=RobertaForSequenceClassification,
        config=pruned_modeling.PrunedRobertaConfig,
        encoder=pruned_modeling.PrunedRobertaModel,
        classifier=pruned_modeling.PrunedRobertaForSequenceClassification,
        dense="classifier.dense",
        answers="classifier.out_proj",
    ),
    "distilbert": Family(
        places=DISTILBERT_PLACES,
        stock_config=DistilBertConfig,
        stock_classifier=DistilBertForSequenceClassification,
        config=pruned_modeling.PrunedDistilBertConfig,
        encoder=pruned_modeling.PrunedDistilBertModel,
        classifier=pruned_modeling.PrunedDistilBertForSequenceClassification,
        dense="pre_classifier",
        answers="classifier",
        neurons="hidden_dim",
        activation="activation",
    ),
    "electra": Family(
        places=BERT_PLACES,
        stock_config=ElectraConfig,
        stock_classifier=ElectraForSequenceClassification,
        config=pruned_modeling.PrunedElectraConfig,
        encoder=pruned_modeling.PrunedElectraModel,
        classifier=pruned_modeling.PrunedElectraForSequenceClassification,
        dense="classifier.dense",
        answers="classifier.out_proj",
    ),
    "mpnet": Family(
        places=MPNET_PLACES,
        stock_config=MPNetConfig,
        stock_classifier=MPNetForSequenceClassification,
        config=pruned_modeling.PrunedMPNetConfig,
        encoder=pruned_modeling.PrunedMPNetModel,
        classifier=pruned_modeling.PrunedMPNetForSequenceClassification,
        dense="classifier.dense",
        answers="classifier.out_proj",
    ),
}
"""Model type of transformers' own configuration to the family; that of uneven layers has `pruned-` before it."""


def family_of(model_type: str) -> Family | None:
    """The family of models of this type, of even or uneven layers; None for one whose parts are not known."""
    return FAMILIES.get(model_type.removeprefix(PRUNED))


def uneven_family(model_type: str) -> Family | None:
    """The family of models of this type, where its layers are uneven; None for types of transformers' own."""
    return family_of(model_type) if model_type.startswith(PRUNED) else None
