"""An OpenAI-compatible endpoint as the teacher's engine: its key, what is checked before anything is asked, the engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator

import httpx

from cotd.errors import CotdError, nearest
from cotd.progress import say
from cotd.teachers.api_config import ApiConfig
from cotd.teachers.requests import Request
from cotd.teachers.store import Completion
from pipelines.annotate.ask import Complete
from pipelines.annotate.engines.api.client import ApiClient
from pipelines.annotate.engines.api.endpoint import Endpoint
from pipelines.annotate.engines.api.errors import MALFORMED
from pipelines.annotate.journal import Journal


def api_key(config: ApiConfig) -> str | None:
    """The key from the environment, or None where the endpoint needs none.

    Raises:
        CotdError: it is not set, or cannot be sent. The key itself is not shown.
    """
    if config.key_env is None:
        return None
    key = os.environ.get(config.key_env, "").strip()
    if not key:
        raise CotdError(
            f"the environment variable {config.key_env} is not set; teacher.api.key_env says that it holds the key to "
            f"{config.base_url}. Set it, or teacher.api.key_env: null for a server that needs no key."
        )
    # Anything else cannot stand in a header, and the error that says so would show it.
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise CotdError(
            f"the environment variable {config.key_env} does not hold a key: it has a line break, a space or a character "
            "that is not ASCII in it. Copy the key again, alone and on one line."
        )
    return key


def check_endpoint(model: str, config: ApiConfig, probe: Request | None) -> None:
    """Raises a CotdError if the endpoint does not respond, or lacks the log-probabilities.

    Args:
        probe: a scoring request, to see whether label log-probabilities come back.
    """
    endpoint = Endpoint(model, config, api_key(config), len)
    client = ApiClient(endpoint)

    async def run() -> None:
        try:
            await look_at_models(endpoint)
            if probe is not None:
                await check_scoring(client, probe)
        finally:
            await client.close()

    asyncio.run(run())


async def look_at_models(endpoint: Endpoint) -> None:
    """Says so if the server does not list the model: the first request decides, as a list may be of other things, or not be allowed.

    Raises:
        CotdError: there is no server.
    """
    model, config = endpoint.model, endpoint.config
    try:
        response = await endpoint.http.get(config.url("models"), timeout=min(15.0, config.timeout_seconds))
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        why = endpoint.without_key(str(error) or type(error).__name__)
        raise CotdError(
            f"no response from {config.base_url} ({why}). Check teacher.api.base_url, and that the server runs."
        ) from error
    except httpx.RequestError:
        return
    names = model_names(response)
    if names and bare_name(model) not in map(bare_name, names):
        say(
            f"  note: {config.base_url} does not list the model '{model}' (teacher.model); it lists {len(names)}, among them "
            f"{', '.join(sorted(names)[:5])}.{nearest(model, names)} It is asked all the same."
        )


async def check_scoring(client: ApiClient, probe: Request) -> None:
    completion = await client.complete(probe)
    if client.fatal:
        raise client.fatal
    if completion and completion["error"]:
        raise CotdError(f"{client.config.base_url} cannot score labels: {completion['error']}. Set strategy: chain_of_thought.")


def model_names(response: httpx.Response) -> list[str]:
    """The models that a server lists; empty where it lists none."""
    try:
        return [str(m["id"]) for m in response.json()["data"]] if response.status_code == 200 else []
    except MALFORMED:
        return []


def bare_name(model: str) -> str:
    """A model's name without what some servers list before it (models/NAME, OWNER/NAME) or after it (NAME:latest).

    Names that agree in this may still be two models; the server then says so at the first request.
    """
    return model.rpartition("/")[2].partition(":")[0].casefold()


@contextlib.contextmanager
def api_engine(
    model: str, config: ApiConfig, count: Callable[[str], int], may_pay_again: Callable[[Request], bool], journal: Journal
) -> Iterator[Complete]:
    """An endpoint as an engine, for the duration of a block.

    Args:
        count: see `Endpoint`. may_pay_again: see `ApiClient`. journal: has what came until the next batch is asked for.

    Yields:
        A function like that of `pipelines.annotate.engines.choose.teacher_engine`. It takes requests as capacity gets free.
        On Ctrl-C, or SIGTERM, it waits a little for what is in flight, yields it, and stops; a second Ctrl-C drops it.
    """
    client = ApiClient(Endpoint(model, config, api_key(config), count), may_pay_again, journal.add)
    with asyncio.Runner() as runner, on_terminate(runner, client.stop):

        def complete(requests: Iterable[Request]) -> Iterator[list[Completion]]:
            remaining = iter(requests)
            try:
                while batch := runner.run(client.next_batch(remaining)):
                    yield batch
                    journal.kept(batch)
            except (KeyboardInterrupt, asyncio.CancelledError) as stopped:
                say(f"  waiting for {len(client.in_flight):,} requests in flight (Ctrl-C again drops them)")
                if batch := runner.run(client.finish()):
                    yield batch
                    journal.kept(batch)
                if isinstance(stopped, asyncio.CancelledError):
                    raise SystemExit(128 + signal.SIGTERM) from None
                raise

        try:
            yield complete
        finally:
            runner.run(client.close())


@contextlib.contextmanager
def on_terminate(runner: asyncio.Runner, stop: Callable[[], None]) -> Iterator[None]:
    """Calls `stop` on SIGTERM, on the runner's event loop, for the duration of a block; only where signals can be handled."""
    previous = signal.getsignal(signal.SIGTERM)
    try:
        runner.get_loop().add_signal_handler(signal.SIGTERM, stop)
    except (ValueError, RuntimeError, NotImplementedError):  # not the main thread
        yield
        return
    try:
        yield
    finally:
        runner.get_loop().remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, previous)
