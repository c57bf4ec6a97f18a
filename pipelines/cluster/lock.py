"""Locks: one command of a kind at a time works on a study, on this machine and on all that share the study's storage."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from cotd.errors import CotdError
from cotd.progress import say
from cotd.storage.lease import PATIENCE_SECONDS, Lease, machine_name
from cotd.storage.sync import COMMAND_LEASES
from cotd.storage.working_copy import copy_folder, copy_of, is_small
from cotd.study.config import StudyConfig


@contextlib.contextmanager
def only_one(folder: Path, activity: str, advice: str, name: str = ".lock") -> Iterator[None]:
    """Keeps a second process on this machine from working in a folder; ends with the process, however that ends.

    Args:
        activity: completes "another process is …". advice: what is lost, or not, if that process is stopped.
        name: of the lock's file, which begins with ".lock".

    Raises:
        CotdError: another process works in the folder.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise CotdError(f"another process is {activity} ({lock.lock_file}). Wait for it, or stop it; {advice}") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def only_one_machine(config: StudyConfig, command: str, activity: str, advice: str) -> Iterator[None]:
    """`only_one` of a command, for all machines that share the study's storage; what others have written meanwhile is pulled first.

    A machine that has had the command's lease and shows no life for two minutes counts as dead, and the command is taken over.
    Where that was wrong, the command there ends as soon as it finds out.

    Args:
        command: names the lease. activity, advice: as `only_one` takes them.

    Raises:
        CotdError: another process or machine is at it, or has taken over what this one did.
    """
    with only_one(config.directory, activity, advice, f".lock-{command}"):
        if config.remote is None:
            yield
            return
        lease = Lease(f"{config.remote}/{COMMAND_LEASES}/{command}", machine_name(copy_folder(config.remote).parent))
        if not lease.acquire():
            say(f"  another machine was {activity}; looking whether it still does, for {PATIENCE_SECONDS:.0f} s at most")
            if (holder := lease.take(PATIENCE_SECONDS)) is not None:
                raise CotdError(f"another machine is {activity} ({holder.get('where')}). Wait for it, or stop it; {advice}")
        copy = copy_of(config.remote, config.directory)
        copy.pull(select=is_small)
        in_main = threading.current_thread() is threading.main_thread()
        try:
            with lease.renewing(command, stop_here if in_main else lambda: None):
                yield
                lease.require()
                copy.push()
        except BaseException as error:
            if lease.lost:
                raise CotdError(
                    f"another machine is {activity}: it has taken over, as this one showed no life for {PATIENCE_SECONDS:.0f} s. "
                    f"This command has ended; {advice}"
                ) from error
            raise
        finally:
            with contextlib.suppress(Exception):  # others will take it over for lack of life
                lease.release(done=not lease.lost)


def stop_here() -> None:
    """Interrupts this process as Ctrl-C does."""
    os.kill(os.getpid(), signal.SIGINT)
