"""Which kind of student a model makes: told by its configuration alone, before its weights are read."""

from __future__ import annotations

from typing import Any

from cotd.errors import CotdError
from cotd.tasks.base import Task

# The encoder-decoders that `cotd.students.backends.t5` computes without padding.
PACKED = ("t5", "mt5")
KINDS = {
    "t5": "an encoder-decoder of the T5 family",
    "seq2seq": "an encoder-decoder",
    "causal": "a causal language model",
    "encoder": "an encoder with a classification head",
}


def model_kind(config: Any) -> str:
    """One of KINDS for a model's configuration.

    Raises:
        CotdError: transformers knows no text model of this kind.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
    )
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES as SEQ2SEQ,
    )
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS,
    )

    family = config.model_type
    if getattr(config, "is_encoder_decoder", False) and family in SEQ2SEQ:
        return "t5" if family in PACKED else "seq2seq"
    # transformers can run BERT as a decoder, too: what a model was pretrained as is among its architectures.
    architectures = [name for name in getattr(config, "architectures", None) or [] if isinstance(name, str)]
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        if family in CAUSAL:
            return "causal"
    elif family in CLASSIFIERS and (family not in CAUSAL or reads_both_ways(family)):
        return "encoder"
    elif family in CAUSAL:
        return "causal"
    raise CotdError(
        f"no student can be made of a model of type '{family}' ({', '.join(architectures) or 'no architecture named'}): it is not "
        "an encoder-decoder, a causal language model or an encoder of texts. Name another base model in sizes."
    )


def model_class(kind: str) -> Any:
    """transformers' class for models of a kind."""
    import transformers

    names = {"encoder": "AutoModelForSequenceClassification", "causal": "AutoModelForCausalLM"}
    return getattr(transformers, names.get(kind, "AutoModelForSeq2SeqLM"))


def reads_both_ways(family: str) -> bool:
    """Whether models of this type are pretrained by masking words, as BERT is."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return family in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def context_length(config: Any) -> int | None:
    """How many tokens a model can read at most; None if its positions are relative.

    RoBERTa counts positions from its padding token's number on.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    shifted = "roberta" in config.model_type or config.model_type in ("camembert", "longformer", "mpnet")
    return positions - config.pad_token_id - 1 if shifted else positions


def encoder_problem(task: Task) -> str | None:
    """Why an encoder cannot be a task's student, or None."""
    if task.labels:
        return None
    return (
        f"an encoder tells a fixed set of labels apart, and the task '{task.name}' is {task.kind}. "
        "Use a causal or encoder-decoder student."
    )
