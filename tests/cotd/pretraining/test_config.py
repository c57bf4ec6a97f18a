from pathlib import Path

import pytest
import yaml

from cotd.errors import CotdError
from cotd.pretraining.config import load_pretrain_config

SOUND = {
    "name": "t", "corpus": {"sources": [{"source": "embedded:rotten-tomatoes"}]}, "embeddings": "random",
    "objectives": {"hidden_share": 0, "answer_share": 0}, "training": {"steps": 10},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objectives": {"answer_share": 0}}, "encoder_teacher is missing"),
        ({"embeddings": "encoder_teacher"}, "encoder_teacher is missing"),
        ({"objectives": {"hidden_share": 0}}, "answer_share needs an answer_teacher"),
        ({"objectives": {"hidden_share": 0, "answer_share": 0, "denoise_share": 0}}, "nothing to learn"),
        ({"objectives": {"hidden_share": 0, "answer_share": 0, "gold_share": 1}}, "gold_share needs a source with labels"),
        ({"objectives": {"hidden_share": 0, "answer_share": 0, "rationale_share": 1}}, "rationale_share needs a source with"),
        (
            {"objectives": {"hidden_share": 0}, "answer_teacher": {"readout": "gold"}},
            "readout: gold needs a source with labels",
        ),
        ({"corpus": {"sources": [{"source": "a.csv", "splits": ["unlabelled"], "labels": True}]}}, "whose texts have none"),
        (
            {"corpus": {"sources": [{"source": "a.csv", "splits": ["train", "unlabelled"]}]}},
            "stands for all rows, and is beside",
        ),
        (
            {"corpus": {"sources": [{"source": "a.csv", "splits": ["unlabelled"], "columns": {"split": "split"}}]}},
            "columns.split names a column",
        ),
        ({"objectives": {"hiden_share": 1}}, "Did you mean 'hidden_share'"),
        ({"training": {"steps": 10, "batch_tokens": 100}}, "less than the longest chunk"),
        ({"training": {}}, "'training.steps' is missing"),
        ({"corpus": {"sources": []}}, "corpus.sources"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(SOUND))
    assert load_pretrain_config(path).training.steps == 10
    path.write_text(yaml.safe_dump(SOUND | change))
    with pytest.raises(CotdError, match=message):
        load_pretrain_config(path)
