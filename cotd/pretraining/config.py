"""A pretraining recipe: YAML plus `key=value` overrides, checked as a whole before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from cotd.config import Block, Columns, DataConfig, Share, check_block, read_yaml


class CorpusSource(Block):
    source: str = Field(description="embedded:NAME, a .parquet, .jsonl or .csv file, or a hub id")
    columns: Columns = Columns()
    splits: list[Literal["train", "validation", "test", "unlabelled"]] = Field(
        ["train"], description="the splits to read; `unlabelled` stands for all rows of a source without a split column"
    )
    validation_share: Share = Field(
        DataConfig.model_fields["validation_share"].default,
        description="of a source that brings no such split: as the studies have it whose validation and test reviews stay unseen",
    )
    test_share: Share = DataConfig.model_fields["test_share"].default
    labels: bool = Field(False, description="learn its gold labels, too: each chunk's is its document's")
    answers: int = Field(0, ge=0, description="chunks of this source to ask the answer teacher about")
    phrases: int = Field(0, ge=0, description="runs of 1 to 8 words to ask it about: cheaper, and they say which words count")
    rationales: str | None = Field(
        None, description="the annotations.parquet that `cotd annotate` wrote of this source: its rationales are learned"
    )
    noun: str | None = Field(None, description="what the answer teacher's prompt calls a text; null: the source's own word")

    @model_validator(mode="after")
    def labels_are_there(self) -> CorpusSource:
        if self.labels and "unlabelled" in self.splits:
            raise ValueError(f"{self.source}: labels: true, but splits has 'unlabelled', whose texts have none; leave one out")
        return self

    @model_validator(mode="after")
    def all_rows_or_some_splits(self) -> CorpusSource:
        if "unlabelled" in self.splits and len(set(self.splits)) > 1:
            raise ValueError(
                f"{self.source}: 'unlabelled' stands for all rows, and is beside other splits; leave it out, or them"
            )
        if "unlabelled" in self.splits and self.columns.split:
            raise ValueError(
                f"{self.source}: splits has 'unlabelled', which stands for all rows, and columns.split names a column that says "
                "which rows are for training; name splits out of that, or leave columns.split out"
            )
        return self


class CorpusConfig(Block):
    """The text. Whatever shares a long enough run of words with a protected text is left out."""

    sources: list[CorpusSource] = Field(min_length=1)
    protect: list[CorpusSource] = Field(
        default_factory=list, description="texts that the model must not have seen: every test and validation split"
    )
    limit: int | None = Field(None, ge=1, description="documents of each source to use; null: all")
    chunk_tokens: list[int] = Field(
        [24, 64, 128, 256], description="documents are cut at sentence ends into chunks of at most one of these lengths"
    )
    held_out: int = Field(1000, ge=10, description="chunks kept aside to measure the losses on")


class TokenizerConfig(Block):
    vocabulary: int = Field(8192, ge=512, le=65536)
    train_documents: int = Field(20_000, ge=100, description="documents the unigram model is trained on")


class ShapeConfig(Block):
    d_model: int = Field(256, ge=16)
    d_kv: int = Field(64, ge=8)
    d_ff: int = Field(1024, ge=16)
    num_layers: int = Field(4, ge=1, description="of the encoder")
    num_decoder_layers: int = Field(2, ge=1)
    num_heads: int = Field(4, ge=1)
    feed_forward_proj: Literal["relu", "gated-gelu"] = "relu"


class EncoderTeacherConfig(Block):
    """A pretrained encoder whose hidden states the student's encoder learns to predict, piece by piece."""

    model: str = Field(description="embedded:NAME, a local folder or a hub id of a BERT-like encoder")
    layer: int = Field(ge=0, description="the hidden state to learn: 0 is the embeddings' output")


class AnswerTeacherConfig(Block):
    """A language model that is asked for a text's label; its state before the answer, and the answer, are learned."""

    model: str = "embedded:smollm2-135m-instruct"
    layer: int = Field(22, ge=1, description="hidden state after this layer; the middle ones know more than the last says")
    task: str = Field("sentiment", description="whose scoring prompt is asked")
    max_pieces: int = Field(128, ge=8, description="chunks longer than this are not asked about")
    components: int = Field(48, ge=1, description="principal components of the state to learn")
    readout: Literal["answers", "gold"] = Field(
        "answers",
        description="what the regression that reads the label off the state is fitted to: its own answers, or the gold labels "
        "of the asked passages of sources with `labels: true`",
    )
    readout_texts: int = Field(
        3000, ge=64, description="texts that it answers in full, for readout: answers; the others' are read off the state"
    )


class ObjectivesConfig(Block):
    """What the batches are made for, and what each loss weighs."""

    hidden_share: float = Field(0.5, ge=0, description="relative number of batches that learn the encoder teacher's states")
    answer_share: float = Field(0.25, ge=0, description="… that learn the answer teacher's state")
    denoise_share: float = Field(0.25, ge=0, description="… that are denoised")
    gold_share: float = Field(0.0, ge=0, description="… that learn the gold labels of sources with `labels: true`")
    rationale_share: float = Field(0.0, ge=0, description="… that learn to write the rationales of sources with `rationales`")
    continue_share: float = Field(0.0, ge=0, description="… whose end is to be written, max_target_tokens of it")
    hidden_weight: float = Field(1.0, ge=0, description="encoder states → the teacher's hidden states, mean squared error")
    sentence_weight: float = Field(1.0, ge=0, description="first decoder state → the mean of the teacher's hidden states")
    answer_weight: float = Field(1.0, ge=0, description="first decoder state → the answer teacher's, mean squared error")
    label_weight: float = Field(1.0, ge=0, description="label words → the answer teacher's answer, Kullback-Leibler divergence")
    denoise_weight: float = Field(1.0, ge=0, description="token cross-entropy of the text behind the masks")
    continue_weight: float = Field(1.0, ge=0, description="token cross-entropy of the text's end")
    gold_weight: float = Field(1.0, ge=0, description="cross-entropy of the label's word")
    rationale_weight: float = Field(1.0, ge=0, description="token cross-entropy of the rationale")
    mask_share: Share = 0.15
    mask_span: float = Field(3.0, ge=1, description="mean length of a masked span in pieces")
    target: Literal["spans", "text"] = Field(
        "spans", description="spans: what was masked (T5, Raffel et al. 2020); text: the whole text (BART, Lewis et al. 2020)"
    )
    max_target_tokens: int = Field(64, ge=8)

    @classmethod
    def share_names(cls) -> list[str]:
        """The fields that say how many batches are of each kind."""
        return [name for name in cls.model_fields if name.endswith("_share") and name != "mask_share"]


class LoopConfig(Block):
    steps: int = Field(ge=0, description="0 writes the initial model: tokenizer and embeddings, nothing trained")
    batch_tokens: int = Field(2048, ge=64, description="pieces a batch, padding included, on each worker")
    optimizer: Literal["scaled_adamw", "scaled_muon", "adamw", "adafactor"] = Field(
        "scaled_adamw", description="scaled_adamw: steps relative to each matrix's size, for a learning rate of about 0.02"
    )
    learning_rate: float = Field(0.02, gt=0)
    warmup_steps: int = Field(50, ge=0)
    schedule: Literal["cosine", "linear", "inverse_sqrt"] = "cosine"
    weight_decay: float = Field(0.0, ge=0)
    dropout: float = Field(0.0, ge=0, lt=1, description="none: a text is hardly ever seen twice")
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    log_every: int = Field(50, ge=1)
    save_every: int = Field(500, ge=1, description="steps between checkpoints")
    workers: int = Field(1, ge=1, description="more than one: data-parallel on Ray Train, one GPU each where there are any")
    seed: int = 0


class ProbeConfig(Block):
    """A quick finetune on gold labels now and then: does what is learned serve the task?"""

    source: str | None = Field("embedded:rotten-tomatoes", description="null: no probe")
    every: int = Field(
        2000, ge=1, description="steps between probes; one is always taken at the end, and by several workers no other"
    )
    rows: int = Field(1000, ge=32, description="training reviews; scored on the validation split, never on test")
    steps: int = Field(100, ge=1)


class PretrainConfig(Block):
    """One pretraining run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    corpus: CorpusConfig
    start: str | None = Field(
        None, description="a T5 to go on from, an earlier run's say: its weights, shape and tokenizer; null: a new one"
    )
    tokenizer: TokenizerConfig = TokenizerConfig()
    shape: ShapeConfig = ShapeConfig()
    embeddings: Literal["random", "language_teacher", "encoder_teacher"] = Field(
        "encoder_teacher",
        description="random: N(0, 1); language_teacher: the word embeddings of `language_teacher`, projected; "
        "encoder_teacher: each piece's mean hidden state in the encoder teacher, projected",
    )
    language_teacher: str = "embedded:smollm2-135m-instruct"
    encoder_teacher: EncoderTeacherConfig | None = None
    answer_teacher: AnswerTeacherConfig | None = None
    objectives: ObjectivesConfig = ObjectivesConfig()
    training: LoopConfig
    probe: ProbeConfig = ProbeConfig()
    storage: str = Field("runs", description="the folder that holds the run's folder")
    tracking_uri: str | None = Field(None, description="MLflow; null: MLFLOW_TRACKING_URI, else mlflow.db in the storage")

    @field_validator("corpus")
    @classmethod
    def chunks_fit(cls, corpus: CorpusConfig) -> CorpusConfig:
        if not corpus.chunk_tokens or min(corpus.chunk_tokens) < 8 or max(corpus.chunk_tokens) > 510:
            raise ValueError("chunk_tokens must be lengths from 8 to 510, which is what encoder teachers read at once")
        return corpus

    @model_validator(mode="after")
    def teachers_are_there(self) -> PretrainConfig:
        wanted, trains = self.objectives, self.training.steps > 0
        problems = []
        made_from_teacher = self.embeddings == "encoder_teacher" and self.start is None
        if self.encoder_teacher is None and (made_from_teacher or (trains and wanted.hidden_share)):
            problems.append(
                "encoder_teacher is missing: name a model and a layer, or set objectives.hidden_share to 0 "
                "and embeddings to language_teacher or random"
            )
        asked = any(s.answers or s.phrases for s in self.corpus.sources)
        if trains and wanted.answer_share and (self.answer_teacher is None or not asked):
            problems.append(
                "objectives.answer_share needs an answer_teacher and at least one source with answers: N or phrases: N; "
                "give both, or set the share to 0"
            )
        labelled = any(s.labels and s.answers for s in self.corpus.sources)
        if self.asks_answers and self.answer_teacher and self.answer_teacher.readout == "gold" and not labelled:
            problems.append(
                "answer_teacher.readout: gold needs a source with labels: true and answers: N, the passages to fit it to; "
                "give one, or set it to answers"
            )
        if trains and wanted.gold_share and not any(s.labels for s in self.corpus.sources):
            problems.append("objectives.gold_share needs a source with labels: true; give one, or set the share to 0")
        if trains and wanted.rationale_share and not any(s.rationales for s in self.corpus.sources):
            problems.append(
                "objectives.rationale_share needs a source with rationales: PATH, what `cotd annotate` wrote; give one, or set "
                "the share to 0"
            )
        if trains and not any(getattr(wanted, name) for name in wanted.share_names()):
            problems.append("every share in objectives is 0: there is nothing to learn")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def longest_chunk_fits_a_batch(self) -> PretrainConfig:
        if self.training.batch_tokens < max(self.corpus.chunk_tokens):
            raise ValueError(
                f"training.batch_tokens ({self.training.batch_tokens}) is less than the longest chunk "
                f"({max(self.corpus.chunk_tokens)} tokens); raise the one or lower the other"
            )
        return self

    @property
    def asks_answers(self) -> bool:
        """Whether the answer teacher is asked at all: not where no step is taken."""
        return bool(self.training.steps and self.answer_teacher and self.objectives.answer_share)

    @property
    def directory(self) -> Path:
        """The run's own folder, absolute."""
        return Path(self.storage).expanduser().absolute() / self.name


def load_pretrain_config(path: str | Path, overrides: list[str] | None = None) -> PretrainConfig:
    """Reads a recipe's YAML, applies `a.b=value` overrides and checks the whole.

    Raises:
        CotdError: with every problem found, each naming its key.
    """
    return check_block(PretrainConfig, read_yaml(path, overrides), str(path))
