"""The behavioural tests, of students whose behaviour is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cotd.cli.app import main
from cotd.errors import CotdError
from cotd.evaluation.checklist import check_behaviour, contract, load_checklist, make_cases, typo
from cotd.students.base_models import load_base
from cotd.students.student import Prediction, Student
from cotd.tasks.base import Task
from cotd.tasks.registry import get_task
from tests.tasks import SENTIMENT

CHECKLIST = load_checklist(SENTIMENT)
TEXTS = CHECKLIST["texts"]


class Ruled:
    """A student that answers by a rule: text → p(positive)."""

    def __init__(self, rule: Callable[[str], float], task: Task = SENTIMENT):
        self.rule = rule
        self.task = task

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        positive = [self.rule(t) for t in texts]
        return [
            Prediction("positive" if p > 0.5 else "negative", max(p, 1 - p), {"negative": 1 - p, "positive": p}, False)
            for p in positive
        ]


def rates(student: Any) -> dict[str, float]:
    return {o.name: o.pass_rate for o in check_behaviour(student)}


def test_a_constant_is_invariant_and_knows_half() -> None:
    found = rates(Ruled(lambda text: 0.9))
    for name in ("another name", "a typo", "contractions", '"I hated it." is added', "plain praise", "complaint, negated"):
        assert found[name] == 1.0
    assert found["plain complaint"] == found["praise, negated"] == 0.0


def test_each_test_finds_its_fault() -> None:
    assert rates(Ruled(lambda t: 0.9 if "Anna" in t else 0.1))["another name"] == 0.0
    assert rates(Ruled(lambda t: 0.9 if "'" in t else 0.1))["contractions"] == 0.0
    assert rates(Ruled(lambda t: 0.9 if t in TEXTS else 0.1))["a typo"] == 0.0
    moved = rates(Ruled(lambda t: {"hated": 0.7, "loved": 0.3}.get(t.split()[-2], 0.5)))
    assert moved['"I hated it." is added'] == moved['"I loved it." is added'] == 0.0
    within = rates(Ruled(lambda t: {"hated": 0.55, "loved": 0.45}.get(t.split()[-2], 0.5)))
    assert within['"I hated it." is added'] == within['"I loved it." is added'] == 1.0
    good = ("good", "wonderful", "excellent", "lovely", "great")
    no_negation = rates(Ruled(lambda t: 0.9 if any(w in t for w in good) else 0.1))
    assert no_negation["plain praise"] == no_negation["plain complaint"] == 1.0
    assert no_negation["praise, negated"] == no_negation["complaint, negated"] == 0.0


def test_texts_are_changed_and_still_readable() -> None:
    def contracted(text: str) -> str:
        return contract(text, CHECKLIST["contractions"])

    assert contracted("It is not bad, and I do not mind. There is more.") == "It isn't bad, and I don't mind. There's more."
    assert contracted("It is what it is.") == "It's what it is."
    assert typo("A warm and lovely film.") == "A warm and loevly film."
    assert sum(contracted(r) != r for r in TEXTS) == len(TEXTS)
    assert all(typo(r) != r for r in TEXTS)


@pytest.mark.parametrize("name", ["sentiment", "nli"])
def test_every_test_has_cases_and_a_label_of_its_task(name: str) -> None:
    task = get_task(name)
    checklist = load_checklist(task)
    for test in checklist["tests"]:
        cases = make_cases(test, checklist["texts"], checklist["contractions"])
        assert len(cases) >= 10, test["name"]
        assert test.get("label", task.labels[0]) in task.labels
        assert all(case.text != case.original for case in cases)
        if name == "nli":
            assert all(case.text.startswith("premise: ") and " hypothesis: " in case.text for case in cases)


def test_a_typo_leaves_the_names_of_fields() -> None:
    assert typo("premise: A boy sings. hypothesis: He hums.") == "premise: A boy snigs. hypothesis: He hums."


def test_another_task_has_no_such_tests() -> None:
    with pytest.raises(CotdError, match="the task 'topic' of this student has no behavioural tests"):
        check_behaviour(Ruled(lambda text: 0.9, SENTIMENT.model_copy(update={"name": "topic"})))  # type: ignore[arg-type]


def test_the_command_prints_a_table(
    tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = load_base(str(tiny_t5))
    Student(model, tokenizer, SENTIMENT, {}).save(tmp_path / "student")
    monkeypatch.setattr(
        "sys.argv", ["cotd", "check", str(tmp_path / "student"), "--tracking-uri", f"sqlite:///{tmp_path}/m.db"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["kind", "test", "passed"]
    assert len(lines) == 9
    assert all("%" in line for line in lines)
