"""The tasks that tests use: a built-in one, and one of each kind as a study may write it."""

from cotd.tasks.registry import get_task, parse_task

SENTIMENT = get_task("sentiment")
TICKETS = parse_task(
    {"name": "tickets", "kind": "classification", "labels": ["refund", "bug", "question"], "noun": "support ticket"}
)
QUIZ = parse_task({"name": "quiz", "kind": "multiple_choice"})
SUMS = parse_task({"name": "sums", "kind": "numeric"})
