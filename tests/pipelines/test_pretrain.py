"""`cotd pretrain` for real, tiny: teachers of a few thousand random parameters, real text, Ray for the answer teacher."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cotd.annotations import annotation_row
from cotd.config import DataConfig
from cotd.errors import CotdError
from cotd.pretraining.config import PretrainConfig
from cotd.pretraining.run_folder import RunFolder
from cotd.pretraining.training import train
from cotd.sources import load_reviews
from cotd.student import Student, load_base
from cotd.task import SENTIMENT
from pipelines.pretrain import pretrain


@pytest.fixture(scope="module")
def teachers(embedded_student: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random BERT and a random causal language model, with the embedded student's tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(embedded_student, local_files_only=True)
    shape: dict[str, Any] = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "vocab_size": len(tokenizer),
    }  # fmt: skip
    made = {name: tmp_path_factory.mktemp(name) for name in ("encoder", "language")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(BertConfig(**shape)).save_pretrained(made["encoder"])
        LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(made["language"])
    for folder in made.values():
        tokenizer.save_pretrained(folder)
    return made


@pytest.fixture(scope="module")
def recipe(
    tmp_path_factory: pytest.TempPathFactory,
    teachers: dict[str, Path],
    rotten_tomatoes: Path,
    make_store: Callable[[Path], str],
) -> Callable[..., PretrainConfig]:
    storage = tmp_path_factory.mktemp("pretraining")
    make_store(storage / "mlflow.db")

    def make(name: str = "tiny", rationales: Path | None = None, **changes: Any) -> PretrainConfig:
        source: dict[str, Any] = {"source": "embedded:rotten-tomatoes", "labels": True, "answers": 40, "phrases": 60}
        source["rationales"] = str(rationales) if rationales else None
        plain: dict[str, Any] = {
            "name": name,
            "corpus": {"sources": [source], "limit": 300, "held_out": 30, "chunk_tokens": [24, 48]},
            "encoder_teacher": {"model": str(teachers["encoder"]), "layer": 1},
            "answer_teacher": {"model": str(teachers["language"]), "layer": 1, "components": 8, "readout_texts": 64},
            "tokenizer": {"vocabulary": 1000, "train_documents": 300},
            "objectives": {"gold_share": 0.25},
            "shape": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2},
            "training": {"steps": 12, "batch_tokens": 512, "save_every": 6, "log_every": 3, "warmup_steps": 2, "dropout": 0.1},
            "probe": {"source": None},
            "storage": str(storage),
        }
        for key, value in changes.items():
            plain[key] = plain[key] | value if isinstance(value, dict) else value
        return PretrainConfig.model_validate(plain)

    return make


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def learned(recipe: Callable[..., PretrainConfig]) -> tuple[PretrainConfig, dict[str, Any]]:
    """A recipe, and its summary once it is done."""
    config = recipe(training={"steps": 60, "optimizer": "adamw", "learning_rate": 0.03})
    return config, pretrain(config)


Learned = tuple[PretrainConfig, dict[str, Any]]


def borrow(learned: Learned, config: PretrainConfig, *parts: str) -> PretrainConfig:
    """Gives a recipe that has not begun what another has prepared: asking starts Ray, and two processes with a teacher."""
    for part in parts:
        shutil.copytree(learned[0].directory / part, config.directory / part)
    return config


def test_a_recipe_becomes_a_t5_that_learned_from_both_teachers(recipe: Callable[..., PretrainConfig], learned: Learned) -> None:
    import mlflow

    config, summary = learned
    folder = RunFolder(config.directory)
    points = folder.points()
    for name, share in (("label", 0.5), ("gold", 0.5), ("denoise", 1.0)):
        assert points[-1][f"held_out_{name}"] < share * max(p[name] for p in points if name in p)
    assert points[-1]["held_out_hidden"] < 0.98, "predicting the mean is 1"
    model, tokenizer = load_base(str(folder.model))
    assert sum(p.numel() for p in model.parameters()) == summary["parameters"]
    assert model.generation_config.use_cache
    student = Student.load(folder.model)  # it has learned the labels, and predicts as it is
    assert student.predict(["A fine film."]) == Student(model, tokenizer, SENTIMENT, {}).predict(["A fine film."])
    assert (student.task, student.can_explain, student.max_input_tokens) == (SENTIMENT, False, 48)
    for file in ("README.md", "pretraining.json"):
        text = (folder.model / file).read_text()
        assert "embedded:rotten-tomatoes" in text
        assert str(config.directory.parent) not in text, "no path of the machine it was made on"
    client = mlflow.MlflowClient(f"sqlite:///{config.directory.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("pretraining")
    (run,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'tiny'")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["held_out_hidden"] == pytest.approx(points[-1]["held_out_hidden"])
    before = (folder.model / "model.safetensors").stat().st_mtime_ns
    assert pretrain(config)["digest"] == summary["digest"]
    assert (folder.model / "model.safetensors").stat().st_mtime_ns == before, "what is done is not done again"
    held_out_less = config.model_copy(deep=True, update={"corpus": config.corpus.model_copy(update={"held_out": 20})})
    for other in (recipe(training={"steps": 31}), held_out_less):
        with pytest.raises(CotdError, match="another recipe"):
            pretrain(other)


def test_a_stopped_run_goes_on_exactly(recipe: Callable[..., PretrainConfig], learned: Learned) -> None:
    # The tokenizer's trainer breaks ties at random, so that a second corpus may differ.
    whole, stopped = (borrow(learned, recipe(name), "corpus", "initial") for name in ("whole", "stopped"))
    pretrain(whole)

    class Stop(Exception):
        pass

    def stop(point: dict[str, float]) -> None:
        if point["step"] >= 9:
            raise Stop

    folder = RunFolder(stopped.directory)
    with pytest.raises(Stop):
        train(stopped, folder, stop)
    assert [p.name for p in folder.checkpoints.glob("checkpoint-*")] == ["checkpoint-6"]
    pretrain(stopped)
    one, other = weights(RunFolder(whole.directory).model), weights(folder.model)
    assert all((one[name] == other[name]).all() for name in one)


def test_bfloat16_is_what_every_objective_computes_in(recipe: Callable[..., PretrainConfig], learned: Learned) -> None:
    found: dict[str, dict[str, float]] = {}
    wanted = {"label", "answer", "gold", "hidden", "sentence", "denoise", "continue"}
    for precision in ("float32", "bfloat16"):
        settings = {"steps": 36, "dropout": 0.0, "learning_rate": 1e-6, "warmup_steps": 0, "precision": precision}
        config = borrow(learned, recipe(precision, training=settings, objectives={"continue_share": 0.25}), "corpus", "initial")
        assert pretrain(config)["precision"] == precision
        points = RunFolder(config.directory).points()
        found[precision] = {name: p[name] for p in points for name in wanted if name in p}
    exact, rough = found["float32"], found["bfloat16"]
    assert exact.keys() == wanted
    assert all(rough[name] != exact[name] for name in exact)
    assert rough == pytest.approx(exact, rel=0.02)


def test_no_steps_write_the_first_model(recipe: Callable[..., PretrainConfig], learned: Learned) -> None:
    only_answers = {"answer_share": 1, "gold_share": 0, "hidden_share": 0, "denoise_share": 0}
    random = recipe("random", embeddings="random", training={"steps": 0}, objectives=only_answers)
    language = recipe("language", embeddings="language_teacher", training={"steps": 0})
    language = language.model_copy(update={"language_teacher": language.answer_teacher.model})
    for config in (random, language):
        assert pretrain(borrow(learned, config, "corpus"))["tokens"] == 0
        assert "No gold label was used." in (RunFolder(config.directory).model / "README.md").read_text()
        with pytest.raises(CotdError, match="is not a trained student"):
            Student.load(RunFolder(config.directory).model)
    one, other = (weights(RunFolder(c.directory).model) for c in (random, language))
    assert (one["shared.weight"] != other["shared.weight"]).any()
    assert all(
        (one[n] == other[n]).all() for n in one if n != "shared.weight" and "embed_tokens" not in n and "lm_head" not in n
    )


def test_rationales_are_learned_and_labels_read_off_by_gold_ones(
    recipe: Callable[..., PretrainConfig], learned: Learned, tmp_path: Path
) -> None:
    reviews = load_reviews(DataConfig(source="embedded:rotten-tomatoes")).table
    answer = {"finish_reason": "stop", "logprob": None, "prompt_tokens": 1, "output_tokens": 6, "error": None}
    origin = {"teacher": "t", "revision": None, "prompt_hash": None}
    rows = [
        annotation_row(id_, 0, False, label, None, f"It sounds {label} to me.", answer, origin)
        for id_, label in zip(reviews["id"], reviews["label"], strict=True)
    ]
    path = tmp_path / "annotations.parquet"
    pd.DataFrame(rows).to_parquet(path)
    changes: dict[str, Any] = {
        "training": {"steps": 40, "optimizer": "adamw", "learning_rate": 0.03},
        "objectives": {"rationale_share": 1, "answer_share": 1, "gold_share": 0, "hidden_share": 0, "denoise_share": 0},
        "answer_teacher": {"readout": "gold"},
    }
    with pytest.raises(CotdError, match=r"no\.parquet, the rationales of embedded:rotten-tomatoes, does not exist"):
        pretrain(recipe("explained", tmp_path / "no.parquet", **changes))
    alone = tmp_path / "labels.parquet"
    pd.DataFrame(rows).assign(rationale="").to_parquet(alone)
    with pytest.raises(CotdError, match=r"none of the 0 reviews in .*labels\.parquet"):
        pretrain(borrow(learned, recipe("labels", alone, **changes), "corpus", "initial"))
    config = recipe("explained", path, **changes)
    pretrain(borrow(learned, config, "corpus", "initial"))
    points, model = RunFolder(config.directory).points(), RunFolder(config.directory).model
    assert points[-1]["held_out_rationale"] < 0.5 * max(p["rationale"] for p in points if "rationale" in p)
    assert Student.load(model).can_explain
    text = (model / "README.md").read_text()
    assert "the only thing gold labels were used for; they are those of embedded:rotten-tomatoes" in text
    assert str(tmp_path) not in (model / "pretraining.json").read_text()


def test_a_run_goes_on_from_another_s_model(recipe: Callable[..., PretrainConfig], learned: Learned) -> None:
    before = RunFolder(learned[0].directory).model
    plain = {"start": str(before), "objectives": {"gold_share": 1, "hidden_share": 0, "answer_share": 1, "denoise_share": 0}}
    for name, steps in (("as_it_was", 0), ("further", 3)):
        pretrain(recipe(name, training={"steps": steps}, **plain))
    first, same, further = (
        weights(folder) for folder in (before, *(before.parents[1] / n / "model" for n in ("as_it_was", "further")))
    )
    assert all((first[name] == same[name]).all() for name in first)
    assert any((first[name] != further[name]).any() for name in first)
    heads = weights(before.parents[1] / "further" / "initial")
    assert (heads["answer_mean"] == 0).all(), "its targets are standardised already"
    assert (heads["answer_spread"] == 1).all()
    folder = before.parents[1] / "further" / "model"
    assert (folder / "tokenizer.json").read_bytes() == (before / "tokenizer.json").read_bytes()
    assert (folder / "START.md").read_text() == (before / "README.md").read_text()
    for file in ("README.md", "pretraining.json"):
        text = (folder / file).read_text()
        assert "tiny/model" in text
        assert str(before.parents[1]) not in text, "no path of the machine it was made on"


def test_a_card_that_a_kill_prevented_is_written_by_the_next_run(
    recipe: Callable[..., PretrainConfig], learned: Learned
) -> None:
    config = recipe("carded", training={"steps": 0})
    borrow(learned, config, "corpus")
    folder, summary = RunFolder(config.directory), pretrain(config)
    card = (folder.model / "README.md").read_text()
    (folder.model / "README.md").unlink()
    with folder.metrics.open("a") as file:
        file.write('{"step": 0, "lo')
    folder.append({"step": 0, "late": 1.0})
    assert folder.points()[-1]["late"] == 1.0, "a line that was cut off takes no other with it"
    shutil.rmtree(folder.initial)
    assert pretrain(config) == summary
    assert (folder.model / "README.md").read_text() == card
    assert not folder.initial.exists(), "nothing is computed again"
    shutil.rmtree(folder.model)
    with pytest.raises(CotdError, match=r"says that it is done, and .* is gone"):
        pretrain(config)


def test_a_loss_that_is_no_number_stops_it(recipe: Callable[..., PretrainConfig], learned: Learned) -> None:
    config = recipe("diverging", training={"learning_rate": 1e30, "optimizer": "adamw", "warmup_steps": 0, "save_every": 4})
    borrow(learned, config, "corpus")
    with pytest.raises(CotdError, match=r"the loss is not a number. It has stopped; .*Lower training.learning_rate"):
        pretrain(config)
    folder = RunFolder(config.directory)
    assert not folder.summary.exists()
    for checkpoint in folder.checkpoints.glob("checkpoint-*"):
        assert all(tensor.isfinite().all() for tensor in weights(checkpoint).values())


def test_what_is_wrong_with_teachers_and_probe_is_said_at_once(recipe: Callable[..., PretrainConfig]) -> None:
    config = recipe("wrong", encoder_teacher={"layer": 3}, answer_teacher={"layer": 2}, probe={"source": "gone.csv"})
    with pytest.raises(CotdError) as error:
        pretrain(config)
    problems = " ".join(error.value.problems)
    for wrong in ("encoder_teacher.layer is 3, and", "answer_teacher.layer is 2, and", "probe.source: ", "gone.csv"):
        assert wrong in problems
    assert not config.directory.exists()


@pytest.mark.slow
def test_two_workers_train_together(
    recipe: Callable[..., PretrainConfig], teachers: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(teachers["encoder"].parent)  # the workers are elsewhere, and find it all the same
    config = recipe(
        "workers", training={"steps": 6, "workers": 2, "save_every": 3}, encoder_teacher={"model": teachers["encoder"].name},
        probe={"source": "embedded:rotten-tomatoes", "rows": 64, "steps": 4, "every": 2},
    )  # fmt: skip
    summary = pretrain(config)
    assert summary["steps"] == 6
    assert weights(RunFolder(config.directory).model)
    points = RunFolder(config.directory).points()
    steps = [p["step"] for p in points]
    assert steps == sorted(set(steps)), "one of the workers writes"
    assert [p["step"] for p in points if "probe_accuracy" in p] == [6]
    assert summary["last"] == points[-1]
    with pytest.raises(CotdError, match=r"training\.workers is 99, and Ray has"):
        pretrain(recipe("crowd", training={"steps": 6, "workers": 99}))
