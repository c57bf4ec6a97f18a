"""The one exception whose message is written for the person at the terminal."""

from __future__ import annotations


class CotdError(Exception):
    """Bad input: what was wrong, where, and what to do about it.

    Several problems are raised together, one string each, so that a user mends them in one go. The
    command line prints them and exits with code 2. Pickles as itself, so it survives a trip through Ray.
    """

    def __init__(self, *problems: str):
        super().__init__(*problems)

    @property
    def problems(self) -> tuple[str, ...]:
        return self.args

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return "\n".join(f"  {i}. {problem}" for i, problem in enumerate(self.problems, 1))


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """' Did you mean …?' for the known name closest to `word`, or an empty string."""
    import difflib

    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
