"""Builds `embedded:t5-tiny`: a small T5 to train where no pretrained one can be downloaded.

Its tokenizer is a unigram model (Kudo 2018) of the embedded training reviews, its weights are random, but its
word embeddings are those of the embedded teacher: for each piece, the mean of the teacher's embedding rows of the
piece's own text, centred, projected to d_model by SVD, each row scaled to length sqrt(d_model), the length of
the N(0, 1) rows that T5 starts from.
"""

from __future__ import annotations

from pathlib import Path

VOCABULARY = 8192
SHAPE = {"d_model": 256, "d_kv": 64, "d_ff": 1024, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}


def build(target: Path) -> None:
    """Writes the student's base model in Hugging Face layout into `target`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

    from cotd import assets
    from cotd.pretraining.embeddings import language_teacher_rows, project
    from cotd.pretraining.tokenizer import SPECIALS, task_words, train_tokenizer

    tokenizer = train_tokenizer(training_texts(), VOCABULARY, task_words(), sentinels=[])
    teacher = assets.require("smollm2-135m-instruct")
    teacher_tokenizer = AutoTokenizer.from_pretrained(teacher, local_files_only=True)
    teacher_model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32, local_files_only=True)
    config = T5Config(
        vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, dropout_rate=0.1, **SHAPE
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = T5ForConditionalGeneration(config)
        teacher_rows = teacher_model.get_input_embeddings().weight.detach()
        rows = project(language_teacher_rows(tokenizer, teacher_tokenizer, teacher_rows), SHAPE["d_model"])
        with torch.no_grad():
            student.shared.weight[len(SPECIALS) :] = rows[len(SPECIALS) :]
    student.save_pretrained(target)
    tokenizer.save_pretrained(target)


def training_texts() -> list[str]:
    """The texts of the embedded training splits: no validation or test review shapes the student."""
    from cotd.sources import embedded_reviews

    texts: list[str] = []
    for name in ("rotten-tomatoes", "amazon-sentences"):
        texts += list(embedded_reviews(name).split("train")["text"])
    return texts
