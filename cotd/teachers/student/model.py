"""A trained student as a teacher: asked in the very tokens that it was trained on, without its weights, which are the engine's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cotd.config.digest import digest
from cotd.data.cleaning import clean_text
from cotd.data.table import ExampleTable
from cotd.errors import CotdError
from cotd.students.backends.kinds import KINDS, context_length, model_kind
from cotd.students.base_models import CARD, model_digest, read_base
from cotd.students.partial import skeleton
from cotd.students.student import Student
from cotd.tasks.base import Task
from cotd.tasks.registry import parse_task
from cotd.teachers.config import EngineConfig, TeacherConfig
from cotd.teachers.requests import Request
from cotd.teachers.store import Completion
from cotd.teachers.teacher import Shown, Teacher
from cotd.utils.files import read_json
from cotd.utils.iteration import batched

# What of a student's card decides how it is asked, and what its scores mean.
DECIDING = (
    "task", "chat", "max_input_tokens", "max_target_tokens", "truncation", "temperature", "writes_rationales",
    "rationale_before_label", "rationale_after_label",
)  # fmt: skip
# What of a student's card says whose it is.
PROVENANCE = ("study", "trial_id", "method", "size", "fraction", "seed", "base", "teacher")
# Texts that are tokenized together, where only their lengths are asked for.
COUNTED = 1024


@dataclass(frozen=True)
class StudentTeacher(Teacher):
    """A causal student as its requests name it: by what it is, and not by where it lies.

    Attributes:
        student: it, without its weights. folder: where it is.
        order: position of each of the study's labels among the student's; empty if there are no fixed labels.
    """

    student: Student = field(kw_only=True)
    folder: Path = field(kw_only=True)
    order: tuple[int, ...] = field(kw_only=True)

    @property
    def source(self) -> str:
        return str(self.folder)

    @property
    def engine(self) -> EngineConfig:
        """With the context that the student needs and has."""
        needed = self.student.max_input_tokens + 2 * self.student.max_target_tokens
        context = max(self.config.engine.max_model_len, needed)
        limit = context_length(self.student.model.config)
        return self.config.engine.model_copy(update={"max_model_len": min(context, limit or context)})

    @property
    def provenance(self) -> dict[str, Any]:
        """Whose student it is: its study and trial, how it was trained, by whom it was taught, and which weights it has."""
        known = {key: self.student.card.get(key) for key in PROVENANCE}
        return known | {"digest": self.revision}

    def shown(self, examples: ExampleTable) -> Iterator[Shown]:
        """Each example whole: the student cuts its inputs itself."""
        for (_, i, text), choices in zip(examples.texts_by_number(), examples.own_choices(), strict=True):
            yield Shown(i, text, choices)

    def count_cut(self, examples: ExampleTable) -> int:
        student, total = self.student, 0
        for block in batched(self.shown(examples), COUNTED):
            texts = student.inputs([s.text for s in block], None, own_lists(block))
            total += sum(student.backend.sources(texts, student.answer_kind, student.max_input_tokens, student.truncation)[1])
        return total

    # --- its requests -------------------------------------------------------------------------------------------------

    def read(self, shown: Shown, kind: str) -> list[int]:
        """The tokens of an input that asks for a target of some kind."""
        student = self.student
        texts = student.inputs([shown.text], None, own_lists([shown]))
        return student.backend.sources(texts, kind, student.max_input_tokens, student.truncation)[0][0]

    def score_requests(self, shown: Shown, rationale: str | None = None) -> list[Request]:
        """Ask for the log-probabilities of an example's options, in the order of the study's task.

        That is one request where one token tells the options apart, else one an option.

        Args:
            rationale: what the student has written before its answer, if it does.
        """
        student = self.student
        ids = self.read(shown, student.answer_kind)
        if rationale is not None:
            ids += [*student.backend.words([rationale])[0], *student.backend.answer_mark]
        if student.first_tokens:
            tokens = [student.first_tokens[n] for n in self.order]
            sampling = {"allowed_token_ids": tokens, "logprobs": len(tokens)}
            return [self._request(ids, {"max_tokens": 1, "temperature": 0.0} | sampling)]
        options = [student.backend.answers[n] for n in self.order] or student.candidates(shown.choices or ())
        return [
            self._request([*ids, *option], {"max_tokens": 1, "temperature": 0.0, "scored_tokens": len(option)})
            for option in options
        ]

    def answer_request(self, shown: Shown) -> Request:
        """Asks for a free answer."""
        return self._request(self.read(shown, self.student.answer_kind), self._writing(0, greedy=True))

    def rationale_request(self, shown: Shown, label: str | None, sample: int = 0, greedy: bool = False) -> Request:
        """Asks for what the student was taught to write: a rationale, after an answer if it follows one, or with its answer."""
        student = self.student
        ids = self.read(shown, student.rationale_kind)
        if student.rationale_after_label and label is not None:
            ids += student.backend.targets([student.task.verbalize(clean_text(label))])[0]
        return self._request(ids, self._writing(sample, greedy))

    def _writing(self, sample: int, greedy: bool) -> dict[str, Any]:
        config = self.config
        temperature = 0.0 if greedy else config.temperature
        limit = self.student.max_target_tokens
        return {"temperature": temperature, "seed": config.seed + sample, "max_tokens": limit, "logprobs": 1}

    def _request(self, ids: Sequence[int], sampling: dict[str, Any]) -> Request:
        return Request("student", self.revision, self.tokenizer.decode(ids), sampling, tuple(ids))

    # --- what completions mean ----------------------------------------------------------------------------------------

    def rationale(self, completion: Completion) -> str:
        """The rationale in what it wrote: up to its answer, if it writes one after it."""
        text = completion["text"] or ""
        return text.partition(self.student.task.answer_mark)[0].strip() if self.student.rationale_before_label else text.strip()

    def answer(self, completion: Completion) -> str | None:
        """The free answer in what it wrote, or None."""
        text, task = completion["text"] or "", self.student.task
        return task.find(text.partition(task.answer_mark)[2] if self.student.rationale_before_label else text)


def own_lists(block: Sequence[Shown]) -> list[list[str]] | None:
    """The options of some examples, if they have their own."""
    return [shown.choices or [] for shown in block] if any(shown.choices for shown in block) else None


def load_student_teacher(config: TeacherConfig, folder: Path, task: Task) -> StudentTeacher:
    """A student in a folder as a teacher of a study's task.

    Raises:
        CotdError: it is no causal student, is of another task, or reads its teacher's rationales.
    """
    card = read_json(folder / CARD)
    base, tokenizer = read_base(str(folder))
    kind, own = model_kind(base), parse_task(card["task"])
    problems = []
    if kind != "causal":
        problems.append(
            f"it is {KINDS[kind]}, which the teacher's engine does not run: causal students alone can teach. Name one, or train one "
            "with a causal base model (sizes: smol)"
        )
    if (own.kind, set(own.labels)) != (task.kind, set(task.labels)):
        problems.append(
            f"it is of the task '{own.name}' ({own.expected()}), and the study of '{task.name}' ({task.expected()}). Name a student "
            "of the study's task"
        )
    if card.get("rationale_as_input"):
        problems.append("it reads its own teacher's rationale with each text, and cannot teach alone. Name another student")
    if problems:
        raise CotdError(*(f"teacher.model '{config.model}': {problem}." for problem in problems))
    revision = student_revision(folder)
    if kwargs := config.engine.output_kwargs():
        revision += f", engine_kwargs {digest(kwargs)}"
    student = Student(skeleton(base, kind), tokenizer, own, card)
    order = tuple(own.labels.index(label) for label in task.labels)
    return StudentTeacher(config.model, revision, config, tokenizer, student=student, folder=folder, order=order)


def student_revision(folder: Path) -> str:
    """Identifies a student's weights and what else decides its answers."""
    card = read_json(folder / CARD)
    return digest([model_digest(str(folder)), {key: card.get(key) for key in DECIDING}])


def whose_student(provenance: dict[str, Any]) -> str:
    """Whose student a teacher is, in words, from `StudentTeacher.provenance`, or a card that has it."""
    teacher = provenance.get("teacher") or {}
    study = f", trial {provenance['trial_id']} of study '{provenance['study']}'" if provenance.get("study") else ""
    taught = f", taught by {teacher['model']}" if "model" in teacher else ""
    return f"a student of size {provenance['size']} by {provenance['method']}{study}{taught}"
