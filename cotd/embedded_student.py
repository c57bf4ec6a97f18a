"""Builds `embedded:t5-tiny`: a small T5 to train where no pretrained one can be downloaded.

Its tokenizer is a unigram model (Kudo 2018) of the embedded training reviews, its weights are random, but its
word embeddings are those of the embedded teacher: for each piece, the mean of the teacher's embedding rows of the
piece's own text, centred, projected to d_model by SVD, each row scaled to length sqrt(d_model), the length of
the N(0, 1) rows that T5 starts from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCABULARY = 8192
SPECIALS = ["<pad>", "</s>", "<unk>"]
SHAPE = {"d_model": 256, "d_kv": 64, "d_ff": 1024, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}


def build(target: Path) -> None:
    """Writes the student's base model in Hugging Face layout into `target`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

    from cotd import assets

    tokenizer = train_tokenizer(training_texts())
    teacher = assets.require("smollm2-135m-instruct")
    teacher_tokenizer = AutoTokenizer.from_pretrained(teacher, local_files_only=True)
    teacher_model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32, local_files_only=True)
    config = T5Config(
        vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, dropout_rate=0.1, **SHAPE
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = T5ForConditionalGeneration(config)
        rows = transplanted_embeddings(tokenizer, teacher_tokenizer, teacher_model.get_input_embeddings().weight.detach())
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


def train_tokenizer(texts: list[str]) -> Any:
    """A unigram tokenizer of `VOCABULARY` pieces in which each label word and prefix word is one piece."""
    import os

    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from cotd.task import SENTIMENT

    wanted = [*SENTIMENT.words.values(), SENTIMENT.label_prefix.strip(" :"), SENTIMENT.rationale_prefix.strip(" :")]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread sums in one order: the same pieces every time
    trained = Tokenizer(models.Unigram())
    trained.normalizer = normalizers.NFKC()
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY - len(wanted), special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
    )
    trained.train_from_iterator(texts, trainer)

    import json

    pieces = [tuple(p) for p in json.loads(trained.to_str())["model"]["vocab"]]
    known = {piece for piece, _ in pieces}
    # A frequent piece's score, so that the whole word beats any way of spelling it from parts.
    frequent = sorted(score for _, score in pieces[len(SPECIALS) :])[-50]
    pieces += [(f"▁{word}", frequent) for word in wanted if f"▁{word}" not in known]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=SPECIALS.index("<unk>"), byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def transplanted_embeddings(tokenizer: Any, teacher_tokenizer: Any, teacher_rows: Any) -> Any:
    """The teacher's word embeddings in the student's vocabulary, of shape (len(tokenizer), d_model)."""
    import torch

    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    means = torch.stack(
        [
            teacher_rows[teacher_tokenizer(p.replace("▁", " ") or " ", add_special_tokens=False)["input_ids"]].mean(0)
            for p in pieces
        ]
    )  # (V, d_teacher)
    centred = means - means.mean(0)
    _, _, components = torch.linalg.svd(centred, full_matrices=False)  # (d_teacher, d_teacher)
    projected = centred @ components[: SHAPE["d_model"]].T  # (V, d_model)
    return projected / projected.norm(dim=1, keepdim=True).clamp_min(1e-6) * SHAPE["d_model"] ** 0.5
