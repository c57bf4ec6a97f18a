"""Base models of every kind with some thousand random parameters, and tokenizers trained on a few words."""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WORDS = [
    "A warm and funny film, number 0123456789.",
    "A dull and lifeless film.",
    "The reviewer finds it warm indeed.",
    "Review: Sentiment: Rationale: Answer: positive negative predict: explain:",
    "Headline: Label: News about the sky sea land",
    "Question: Which is it? right wrong (a) (b) (c) (d)",
    "Problem: What is 1 and 1000?",
    "good film one two three four five six seven eight nine ten",
]
SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def byte_level_tokenizer(**special: str) -> Any:
    """As those of GPT-2, Llama 3, Qwen and, with `<s>` and `</s>` around texts, BART."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    names = list(special.values())
    tokenizer.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=500, special_tokens=names, initial_alphabet=alphabet))
    if "bos_token" in special:
        ends = [(name, tokenizer.token_to_id(name)) for name in (special["bos_token"], special["eos_token"])]
        tokenizer.post_processor = processors.TemplateProcessing(f"{ends[0][0]} $A {ends[1][0]}", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def word_tokenizer() -> Any:
    """As BERT's, of whole words and single characters: the library's training numbers its pieces differently each time."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    words = re.findall(r"\w+|[^\w\s]", " ".join(WORDS).lower())
    characters = sorted({*string.ascii_lowercase, *string.digits, *"".join(words)})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters), *words]
    tokenizer = BertWordPieceTokenizer({piece: i for i, piece in enumerate(dict.fromkeys(pieces))})
    return BertTokenizerFast(tokenizer_object=tokenizer._tokenizer)


def bart(_: Any) -> tuple[Any, Any]:
    from transformers import BartConfig, BartForConditionalGeneration

    tokenizer = byte_level_tokenizer(bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=256, bos_token_id=0, pad_token_id=1, eos_token_id=2,
        decoder_start_token_id=2, forced_bos_token_id=0,
    )  # fmt: skip
    return BartForConditionalGeneration(config), tokenizer


def t5(tokenizer: Any, family: str = "T5", **options: Any) -> tuple[Any, Any]:
    import transformers

    shape = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    ends = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    config = getattr(transformers, f"{family}Config")(vocab_size=len(tokenizer), **shape, **ends, **options)
    return getattr(transformers, f"{family}ForConditionalGeneration")(config), tokenizer


def causal(family: str, **options: Any) -> tuple[Any, Any]:
    import transformers

    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"} if family == "Qwen2" else {"eos_token": "<|end|>"}
    tokenizer = byte_level_tokenizer(**ends)  # Llama's has no padding token
    numbers = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = getattr(transformers, f"{family}Config")(vocab_size=len(tokenizer), **numbers, **options)
    return transformers.AutoModelForCausalLM.from_config(config), tokenizer


def bert(_: Any) -> tuple[Any, Any]:
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = word_tokenizer()
    return BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **SIZE)), tokenizer


# Name → (kind of student, what makes it of the embedded student's tokenizer).
MAKERS: dict[str, tuple[str, Callable[[Any], tuple[Any, Any]]]] = {
    "t5_v1_1": ("t5", lambda tokenizer: t5(tokenizer, feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
    "mt5": ("t5", lambda tokenizer: t5(tokenizer, "MT5")),
    "bart": ("seq2seq", bart),
    "llama": ("causal", lambda _: causal("Llama", num_key_value_heads=2, max_position_embeddings=256, **SIZE)),
    # With heads as large as vLLM's attention on CPUs wants them.
    "llama_vllm": ("causal", lambda _: causal("Llama", num_key_value_heads=2, head_dim=32, max_position_embeddings=256, **SIZE)),
    "qwen2": ("causal", lambda _: causal("Qwen2", num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, **SIZE)),
    "gpt2": ("causal", lambda _: causal("GPT2", n_embd=32, n_layer=2, n_head=4, n_positions=256)),
    "gemma2": ("causal", lambda _: causal("Gemma2", num_key_value_heads=2, head_dim=8, sliding_window=16, **SIZE)),
    "bert": ("encoder", bert),
}  # fmt: skip


def write_tiny(name: str, folder: Path, embedded_tokenizer: Any) -> Path:
    """Writes one of MAKERS, always the same, and returns its folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, tokenizer = MAKERS[name][1](embedded_tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
