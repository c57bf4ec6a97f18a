"""Trains a T5-style unigram tokenizer (Kudo 2018) in which each word that the task scores is one piece."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

SPECIALS = ["<pad>", "</s>", "<unk>"]
# Masks of the denoising objective; 32 spans of three pieces are more than 15 % of the longest chunk.
SENTINELS = [f"<extra_id_{i}>" for i in range(32)]


def task_words() -> list[str]:
    """The label words and the words of the input prefixes of every task."""
    from cotd.task import TASKS

    words: list[str] = []
    for task in TASKS.values():
        words += [*task.words.values(), task.label_prefix.strip(" :"), task.rationale_prefix.strip(" :")]
    return list(dict.fromkeys(words))


def train_tokenizer(texts: Iterable[str], vocabulary: int, words: Sequence[str], sentinels: Sequence[str] = SENTINELS) -> Any:
    """A cased unigram tokenizer of at most `vocabulary` pieces, specials and sentinels included, as a transformers one.

    Args:
        words: words that become one piece each, however rare they are in the texts.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread sums in one order: the same pieces every time
    trained = Tokenizer(models.Unigram())
    trained.normalizer = normalizers.NFKC()
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary - len(sentinels) - len(words), special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
    )
    trained.train_from_iterator(texts, trainer)

    pieces = [tuple(p) for p in json.loads(trained.to_str())["model"]["vocab"]]
    known = {piece for piece, _ in pieces}
    # A frequent piece's score, so that the whole word beats any way of spelling it from parts.
    frequent = sorted(score for _, score in pieces[len(SPECIALS) :])[-50:][0]
    pieces += [(f"▁{word}", frequent) for word in words if f"▁{word}" not in known]
    lowest = min(score for _, score in pieces)
    pieces += [(sentinel, lowest - 10) for sentinel in sentinels]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=SPECIALS.index("<unk>"), byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=list(sentinels),
        model_max_length=512,
    )
