"""Leases between machines, on an S3 server and on a folder."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cotd.storage.lease import Lease, LeaseLost, LeaseWatch


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.integration)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    place = f"file://{tmp_path}" if request.param == "file" else request.getfixturevalue("s3").url
    return f"{place}/leases"


def test_of_many_machines_one_gets_a_lease_and_the_next_when_it_is_given_back(url: str) -> None:
    leases = [Lease(f"{url}/t1", f"machine {n}") for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda lease: lease.acquire(), leases))
    assert taken.count(True) == 1
    first = leases[taken.index(True)]
    first.renew()
    first.release(done=False)
    second, third = Lease(f"{url}/t1", "machine a"), Lease(f"{url}/t1", "machine b")
    assert (second.acquire(), third.acquire()) == (True, False)
    second.require()
    second.release(done=True)
    files, root = fsspec.core.url_to_fs(url)
    assert files.find(root) == [], "nothing is left of what is done"
    with pytest.raises(LeaseLost):
        second.require()


def nobody(name: str, holder: dict[str, Any]) -> bool:
    return False


def test_a_lease_that_shows_no_life_is_taken_over_and_its_holder_notices(url: str) -> None:
    slow, dead, quick = (Lease(f"{url}/{name}", "machine 1") for name in ("slow", "dead", "quick"))
    for lease in (slow, dead, quick):
        assert lease.acquire()
    patient, impatient = LeaseWatch(url, nobody, 3600), LeaseWatch(url, nobody, 0)
    assert patient.look() == ({"slow", "dead", "quick"}, {})
    quick.release(done=False)
    assert patient.look() == ({"slow", "dead"}, {"quick": 0})
    held, free = impatient.look()
    assert (held, free) == (set(), {"slow": 0, "dead": 0, "quick": 0})
    other = Lease(f"{url}/slow", "machine 2")
    assert not other.acquire()
    assert other.acquire(stale=free["slow"])
    for action in (slow.require, slow.renew):
        with pytest.raises(LeaseLost):
            action()
    assert LeaseWatch(url, lambda name, holder: holder["machine"] == "machine 1", 3600).look()[1] == {"quick": 0, "dead": 0}
    assert Lease(f"{url}/dead", "machine 1").acquire(), "its lock on the machine was free: it is dead"
