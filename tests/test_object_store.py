"""The S3 server of the tests does what sweeps rely on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest

from tests.object_store import ObjectStore


@pytest.mark.integration
def test_of_many_who_create_an_object_one_succeeds_and_what_fails_is_tried_again(s3: ObjectStore) -> None:
    files, root = fsspec.core.url_to_fs(s3.url)
    s3.fails = lambda method, path, number: number % 3 == 0

    def create(number: int) -> bool:
        try:
            files.pipe_file(f"{root}/one", str(number).encode(), mode="create")
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(create, range(8)))
    assert created.count(True) == 1
    assert files.cat_file(f"{root}/one") == str(created.index(True)).encode()
