"""Examples of a task to show: in the endpoint's documentation and page, in model cards, and as inputs of a check."""

from __future__ import annotations

from typing import NamedTuple

from cotd.tasks.base import Task


class Sample(NamedTuple):
    """A text, and its options if each example has its own."""

    text: str
    choices: tuple[str, ...] | None = None


SAMPLES = {
    "sentiment": (
        Sample("A warm and funny film."),
        Sample("Dull and lifeless: I checked my watch every five minutes."),
        Sample("The jokes fall flat, but the music is lovely and I would see it again."),
    ),
    "nli": (
        Sample("premise: Two children are flying a kite on the beach. hypothesis: Some children are outdoors."),
        Sample("premise: Two children are flying a kite on the beach. hypothesis: The children are asleep in bed."),
        Sample("premise: Two children are flying a kite on the beach. hypothesis: The children are sisters."),
    ),
    "commonsense_qa": (
        Sample("Where would you keep milk so that it stays fresh?", ("a fridge", "a drawer", "an oven", "a garden")),
        Sample("What do people use to cross a wide river?", ("a ladder", "a bridge", "a pillow")),
    ),
    "svamp": (
        Sample("Mia had 12 pencils and gave 5 of them to her brother. How many pencils does she have now?"),
        Sample("A baker fills 4 trays with 6 rolls each. How many rolls are there?"),
    ),
}


def sample_examples(task: Task) -> tuple[Sample, ...]:
    """Texts of a built-in task; of any other task one that stands for a text."""
    if samples := tuple(s for s in SAMPLES.get(task.name, ()) if (s.choices is not None) == task.needs_choices):
        return samples
    return (Sample(f"An example {task.noun}.", ("the first option", "the second option") if task.needs_choices else None),)
