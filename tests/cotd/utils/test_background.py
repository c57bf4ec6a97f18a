from __future__ import annotations

import threading
import time

import pytest

from cotd.utils.background import repeating


def test_work_is_repeated_until_the_block_ends_and_never_after() -> None:
    calls, thrice = [], threading.Event()

    def work() -> float:
        calls.append(threading.current_thread().name)
        if len(calls) == 3:
            thrice.set()
        return 0.001

    with repeating(work, 0.001, "worker"):
        assert thrice.wait(10)
    ended = len(calls)
    time.sleep(0.05)
    assert len(calls) == ended
    assert set(calls) == {"worker"}


def test_an_error_of_the_block_ends_the_thread() -> None:
    with pytest.raises(KeyError), repeating(lambda: 60.0, 60.0, "patient"):
        raise KeyError
    assert "patient" not in [thread.name for thread in threading.enumerate()]
