"""What is on the stand-in hub: data sets and models laid out as the published ones are."""

from __future__ import annotations

import hashlib
import io
import json
import random
from typing import Any

import numpy as np

from tests.hub.server import Repo

# MODEL has safetensors; MODEL_BIN has the same weights in pytorch_model.bin, as google/t5-v1_1-small has them.
MODEL, MODEL_BIN, STUDENT = "stand-in/t5-v1_1-tiny", "stand-in/t5-v1_1-bin", "stand-in/student"
IMDB, YELP, NOWHERE = "stand-in/imdb", "stand-in/yelp_polarity", "stand-in/nowhere"
EXTRA_IDS = [f"<extra_id_{i}>" for i in range(100)]
VOCABULARY = 384  # more rows than the tokenizer has pieces, as T5's embeddings have
SHAPE = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
CONFIG = {
    "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
    "dropout_rate": 0.1, "initializer_factor": 1.0, "is_encoder_decoder": True, "layer_norm_epsilon": 1e-6,
    "output_past": True, "relative_attention_num_buckets": 32, "use_cache": True, "vocab_size": VOCABULARY, **SHAPE,
}  # fmt: skip


def made_up_examples(seed: int, n: int) -> list[tuple[str, int]]:
    """`n` different sentences and their labels, the negative ones first, as IMDb is sorted on the hub."""
    words = {
        0: ["dull", "clumsy", "tiresome", "lifeless", "shallow", "noisy"],
        1: ["moving", "graceful", "funny", "tender", "gripping", "bright"],
    }
    verdict = {0: "my verdict is negative", 1: "my verdict is positive"}
    draw = random.Random(seed)
    rows: dict[str, int] = {}
    while len(rows) < n:
        label = int(len(rows) >= n // 2)
        first, second = draw.sample(words[label], 2)
        thing, part = draw.choice(["film", "story", "sequel", "comedy"]), draw.choice(["cast", "ending", "script", "music"])
        rows[f"A {first} {thing} number {draw.randrange(10_000)}.<br /><br />The {part} is {second}; {verdict[label]}."] = label
    return list(rows.items())


def parquet(rows: list[tuple[str, int]], names: list[str]) -> bytes:
    """Text and ClassLabel columns, with the features in the schema, as `datasets` uploads them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    label = {"names": names, "_type": "ClassLabel"}
    features = {"info": {"features": {"text": {"dtype": "string", "_type": "Value"}, "label": label}}}
    schema = pa.schema({"text": pa.string(), "label": pa.int64()}, metadata={"huggingface": json.dumps(features)})
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), sink)
    return sink.getvalue()


def imdb() -> Repo:
    """Laid out as stanfordnlp/imdb: sorted by label, an unlabelled split, a card that says which file is what."""
    splits = {"train": made_up_examples(1, 60), "test": made_up_examples(2, 20)}
    splits["unsupervised"] = [(text, -1) for text, _ in made_up_examples(3, 10)]
    card = ["---", "configs:", "- config_name: plain_text", "  default: true", "  data_files:"]
    card += [line for s in splits for line in (f"  - split: {s}", f"    path: data/{s}-*")] + ["---", "# Stand-in", ""]
    files = {f"data/{s}-00000-of-00001.parquet": parquet(rows, ["neg", "pos"]) for s, rows in splits.items()}
    return Repo("datasets", IMDB, files | {"README.md": "\n".join(card).encode()})


def yelp() -> Repo:
    """Labels 0 and 1 that are *named* "1" and "2", as fancyzhx/yelp_polarity's are; no card, no validation split."""
    splits = {"train": made_up_examples(4, 30), "test": made_up_examples(5, 12)}
    files = {f"data/{s}-00000-of-00001.parquet": parquet(rows, ["1", "2"]) for s, rows in splits.items()}
    return Repo("datasets", YELP, files)


def sentencepiece_model() -> bytes:
    """A unigram model with T5's special pieces; the label words are frequent enough to become pieces."""
    import sentencepiece

    texts = [text.replace("<br />", " ") for text, _ in made_up_examples(1, 60)]
    lines = [f"{prefix}: {text}" for prefix in ("predict", "explain") for text in texts] + ["negative", "positive"] * 20
    sink = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=sink, model_type="unigram", vocab_size=250, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", num_threads=1, minloglevel=2,
    )  # fmt: skip
    return sink.getvalue()


def t5_weights() -> dict[str, np.ndarray]:
    """Random weights under the names that T5 v1.1 checkpoints have."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = T5ForConditionalGeneration(T5Config(**CONFIG)).state_dict()
    weights = {name: tensor.numpy() for name, tensor in state.items() if "embed_tokens" not in name}
    # A fresh model has `shared` in its place; that of a v1.1 checkpoint is its own.
    weights["lm_head.weight"] = np.random.default_rng(0).normal(size=(VOCABULARY, SHAPE["d_model"])).astype(np.float32)
    return weights


def t5_v1_1(repo_id: str, weights: dict[str, bytes], spiece: bytes) -> Repo:
    """Laid out as google/t5-v1_1-small: gated GELU, an output layer of its own, `spiece.model` and no tokenizer.json."""
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "additional_special_tokens": EXTRA_IDS}
    plain: dict[str, Any] = {
        "config.json": CONFIG, "special_tokens_map.json": special, "tokenizer_config.json": special | {"extra_ids": 100},
        "generation_config.json": {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0},
    }  # fmt: skip
    texts = {name: json.dumps(content, indent=2).encode() for name, content in plain.items()}
    return Repo("models", repo_id, {**texts, "spiece.model": spiece, **weights})


def models() -> list[Repo]:
    import torch
    from safetensors.numpy import save

    arrays, spiece, sink = t5_weights(), sentencepiece_model(), io.BytesIO()
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    # The published .bin files name the one input embedding three times.
    torch.save(tensors | {f"{s}.embed_tokens.weight": tensors["shared.weight"] for s in ("encoder", "decoder")}, sink)
    return [
        t5_v1_1(MODEL, {"model.safetensors": save(arrays, {"format": "pt"})}, spiece),
        t5_v1_1(MODEL_BIN, {"pytorch_model.bin": sink.getvalue()}, spiece),
    ]


def digests(weights: dict[str, np.ndarray]) -> dict[str, str]:
    return {name: hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() for name, array in weights.items()}
