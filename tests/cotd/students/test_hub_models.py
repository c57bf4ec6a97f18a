"""Models from the hub: loading, training and loading again. What runs in a child process imports what it needs there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.hub.child import VIEWER, cotd, refusal, run_check
from tests.hub.repositories import IMDB, MODEL, MODEL_BIN, NOWHERE, STUDENT, digests, t5_weights
from tests.hub.server import Hub

pytestmark = pytest.mark.integration
SENTENCE = "predict: A dull film. The cast is graceful; my verdict is negative."


def use_model() -> dict[str, Any]:
    """Loads the base model in all ways, trains it, loads the student; everything in one child, to import torch once."""
    from cotd.students.base_models import load_base, model_digest
    from cotd.students.student import Student
    from tests.tasks import SENTIMENT

    loaded = {}
    for source in (MODEL, MODEL_BIN):
        model, tokenizer = load_base(source)
        embeddings = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
        state = {name: tensor.numpy() for name, tensor in model.state_dict().items() if name not in embeddings}
        loaded[source] = {"digests": digests(state), "scaled": model.config.scale_decoder_outputs, "dtype": str(model.dtype)}
    ids = tokenizer(SENTENCE)["input_ids"]
    return {
        "loaded": loaded, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=True),
        "first_tokens": tokenizer.convert_ids_to_tokens(Student(model, tokenizer, SENTIMENT, {}).first_tokens),
        "extra_id_0": tokenizer.convert_tokens_to_ids("<extra_id_0>"),
        "digests": {source: model_digest(source) for source in (MODEL, MODEL_BIN)},
        "missing": {f.__name__: refusal(lambda f=f: f(NOWHERE)) for f in (load_base, model_digest)},
        "bare": refusal(lambda: Student.load(MODEL)), **train(),
    }  # fmt: skip


def train() -> dict[str, Any]:
    import pandas as pd

    from cotd.students.seen import seen_by
    from cotd.students.student import Student

    study = {
        "name": "hub", "data": {"source": IMDB}, "sizes": {"hub": MODEL, "nowhere": NOWHERE},
        "grid": {"method": ["finetune"], "fraction": [1.0], "size": ["hub"], "seed": [0]},
        "training": {"steps": 6, "batch_size": 8, "eval_every": 3, "warmup_steps": 0, "max_input_tokens": 64},
    }  # fmt: skip
    Path("study.yaml").write_text(json.dumps(study))  # JSON is YAML
    runs = {"trained": cotd("train", "study.yaml"), "missing": cotd("train", "study.yaml", "grid.size=[nowhere]")}
    (folder,) = Path("runs/hub/trials").iterdir()
    answer = {"runs": runs, "result": json.loads((folder / "result.json").read_text())}
    student = Student.load(folder / "student", device="cpu")
    kept = pd.read_parquet(folder / "predictions.parquet")
    examples = pd.read_parquet(next(Path("runs/hub/data").glob("examples-*.parquet"))).set_index("id")
    texts = list(examples.loc[kept["example_id"], "text"])
    answer["train_examples"] = int((examples["split"] == "train").sum())
    answer |= {"kept": list(kept["probability_positive"]), "labels": list(kept["predicted"])}
    answer |= {"base": student.card["base"], "predicted": [p.label for p in student.predict(texts)]}
    answer["reloaded"] = [p.probabilities["positive"] for p in student.predict(texts)]
    shutil.copytree(folder / "student", Path(os.environ["STAND_IN_UPLOADS"]) / STUDENT)
    answer["from_hub"] = refusal(lambda: answer.update(hub=[p.label for p in Student.load(STUDENT).predict(texts)]))
    answer["seen"] = {source: seen_by(source) is not None for source in (STUDENT, MODEL)}
    answer["seen_after_loading"] = Student.load(STUDENT).seen is not None
    return answer


def find_no_hub() -> dict[str, Any]:
    """The pauses between the libraries' retries are counted and not waited for."""
    from cotd.students.base_models import load_base, model_digest

    answer: dict[str, Any] = {}
    for function in (model_digest, load_base):
        pauses: list[float] = []
        time.sleep, started = pauses.append, time.monotonic()
        refused = refusal(lambda function=function: function(MODEL))
        answer[function.__name__] = {**refused, "seconds": time.monotonic() - started + sum(pauses)}
    return answer


@pytest.fixture(scope="module")
def model(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_check(use_model, hub, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def unreachable(stopped_hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_check(find_no_hub, stopped_hub, tmp_path_factory.mktemp("unreachable"))


@pytest.mark.parametrize("source", [MODEL, MODEL_BIN])
def test_a_t5_v1_1_loads_with_every_weight(model: dict[str, Any], source: str) -> None:
    loaded = model["loaded"][source]
    assert loaded["digests"] == digests(t5_weights()), "no weight is missing, new or tied to another"
    assert loaded["dtype"] == "torch.float32"
    assert not loaded["scaled"], "v1.1 does not scale what goes into its output layer"


def test_a_sentencepiece_tokenizer_loads_as_it_is(model: dict[str, Any], hub: Hub) -> None:
    import sentencepiece

    spiece = hub.repos["models", MODEL].files["spiece.model"]
    pieces = sentencepiece.SentencePieceProcessor(model_proto=spiece)
    assert model["ids"] == [*pieces.encode(SENTENCE), 1]
    assert model["decoded"] == SENTENCE
    assert model["extra_id_0"] == pieces.vocab_size() + 99
    assert model["first_tokens"] == ["▁negative", "▁positive"]


def test_model_digests_tell_models_apart(model: dict[str, Any]) -> None:
    assert len(set(model["digests"].values())) == 2


def test_a_model_digest_names_the_commit(model: dict[str, Any], hub: Hub) -> None:
    commit = hub.repos["models", MODEL].commit
    assert model["digests"][MODEL] == hashlib.sha256(f"{MODEL}@{commit}".encode()).hexdigest()[:16]


@pytest.mark.parametrize("function", ["load_base", "model_digest"])
def test_a_model_that_is_not_there_is_named(model: dict[str, Any], function: str) -> None:
    refused = model["missing"][function]
    assert refused["type"] == "CotdError"
    assert NOWHERE in refused["message"]
    assert "Check the id" in refused["message"]
    assert "embedded:t5-mini" in refused["message"]


def test_a_bare_model_is_not_a_student(model: dict[str, Any]) -> None:
    assert model["bare"]["type"] == "CotdError"
    assert MODEL in model["bare"]["message"]


def test_train_on_the_hub_s_examples_and_model(model: dict[str, Any]) -> None:
    assert model["runs"]["trained"]["code"] == 0, model["runs"]["trained"]["err"]
    result = model["result"]
    assert (result["steps"], result["train_examples"], result["test"]["n"]) == (6, model["train_examples"], 20)
    assert result["parameters"] == sum(array.size for array in t5_weights().values())
    assert model["base"] == MODEL


def test_the_saved_student_predicts_what_the_trained_one_did(model: dict[str, Any]) -> None:
    assert model["reloaded"] == pytest.approx(model["kept"], abs=1e-5)
    assert model["predicted"] == model["labels"]


def test_a_student_loads_from_the_hub(model: dict[str, Any]) -> None:
    assert model["from_hub"]["type"] is None, model["from_hub"]["message"]
    assert model["hub"] == model["labels"]


def test_a_student_from_the_hub_brings_what_it_has_seen(model: dict[str, Any]) -> None:
    assert model["seen"] == {STUDENT: True, MODEL: False}
    assert model["seen_after_loading"]


def test_training_a_model_that_is_not_there_ends_in_one_line(model: dict[str, Any]) -> None:
    run = model["runs"]["missing"]
    assert run["code"] == 2
    assert run["err"].count("error:") == 1
    assert NOWHERE in run["err"]
    assert "Traceback" not in run["err"]


def test_only_the_named_hub_is_asked(model: dict[str, Any]) -> None:
    assert set(model["strangers"]) <= {VIEWER}


@pytest.mark.parametrize("function", ["load_base", "model_digest"])
def test_an_unreachable_hub_ends_in_an_error(unreachable: dict[str, Any], function: str) -> None:
    refused = unreachable[function]
    assert refused["type"] == "CotdError"
    assert MODEL in refused["message"]
    assert "network" in refused["message"]
    assert refused["seconds"] < 120
