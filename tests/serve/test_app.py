"""`cotd serve` as a whole: Ray Serve, HAProxy, HTTP; a hot swap under load, and a shutdown that leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cotd.errors import CotdError
from cotd.students.student import Student
from serve.app import require_port, require_resources, start_error
from serve.client import Client
from tests.processes import free_port, marked, marked_processes
from tests.serve.conftest import TOKEN, Registry

pytestmark = pytest.mark.integration

Endpoint = tuple[str, subprocess.Popen[str]]  # its address, and the process of `cotd serve`


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Marks every process that is started below, and gives it a Ray of its own."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "COTD_SERVE"))}
    own = {"RAY_ADDRESS": "local", "COTD_TEST_MARK": uuid.uuid4().hex, "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "2"}
    return inherited | own


def wait_until(condition: Callable[[], bool], event: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} s still waiting for {event}"
        time.sleep(0.2)


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", trust_env=False, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def registry(make_store: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("registry")
    return Registry(folder, make_store(folder / "mlflow.db"))


@pytest.fixture(scope="module")
def served(
    registry: Registry, student_folder: Path, tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> Iterator[Endpoint]:
    """`cotd serve` of version 1 with a token, in a session of its own, as a terminal starts it."""
    registry.promote(registry.add(student_folder))
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(TOKEN)
    port = free_port()
    command = [sys.executable, "-m", "cotd.cli", "serve", "--port", str(port), "--poll-seconds", "0.5"]
    command += ["--tracking-uri", registry.uri, "--token-file", str(token)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: process.poll() is not None or healthy(url), "the endpoint")
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        yield url, process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def listening(environment: dict[str, str]) -> set[int]:
    """The ports at which HAProxy listens."""
    ports = set()
    for process in marked_processes(environment):
        with contextlib.suppress(psutil.Error):
            if process.name() == "haproxy":
                ports |= {c.laddr.port for c in process.net_connections() if c.status == "LISTEN"}
    return ports


def ask(url: str, body: Any, **headers: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {TOKEN}", **headers}
    return httpx.post(f"{url}/v1/predict", json=body, headers=headers, trust_env=False, timeout=60)


def test_it_predicts_what_its_student_does(served: Endpoint, student: Student) -> None:
    url, _ = served
    texts = ["A warm and funny film.", "word " * 500]
    response = ask(url, {"texts": texts, "rationale": True}).json()
    assert response["model"] == {"name": "cotd-student", "version": "1"}
    assert [p["truncated"] for p in response["predictions"]] == [False, True]
    for row, expected, why in zip(response["predictions"], student.predict(texts), student.explain(texts), strict=True):
        assert (row["label"], row["rationale"]) == (expected.label, why)
        assert row["probabilities"] == pytest.approx(expected.probabilities, abs=1e-4)
        assert row["score"] == max(row["probabilities"].values())
    with Client(url, token=TOKEN) as client:
        assert [p.label for p in client.predict(texts)] == [p["label"] for p in response["predictions"]]
    assert httpx.post(f"{url}/v1/predict", json={"texts": "fine"}, trust_env=False).status_code == 401
    for bad in ({"texts": []}, {"texts": [" "]}, {"texts": ["x"], "colour": 1}, {}):
        assert ask(url, bad).status_code == 422


def test_a_champion_changes_under_load(served: Endpoint, registry: Registry, student_folder: Path) -> None:
    url, _ = served
    versions, stop = [], threading.Event()

    def send_requests() -> None:
        with Client(url, token=TOKEN, retries=0) as client:
            while not stop.is_set():
                versions.append(client.request(["A warm and funny film."]).model.version)

    clients = [threading.Thread(target=send_requests) for _ in range(2)]
    for client in clients:
        client.start()
    registry.promote(registry.add(student_folder))
    wait_until(lambda: versions[-1:] == ["2"], "version 2")
    registry.promote("1")
    wait_until(lambda: versions[-1:] == ["1"], "version 1")
    stop.set()
    for client in clients:
        client.join()
    assert len(versions) > 20
    assert set(versions) == {"1", "2"}


def test_the_proxy_passes_ids_and_streams_on_and_limits_heads(served: Endpoint) -> None:
    url, _ = served
    answer = ask(url, {"texts": "fine", "rationale": True, "stream": True}, **{"X-Request-ID": "abc"})
    assert answer.headers.get_list("X-Request-ID") == ["abc"]
    assert len(answer.text.splitlines()) > 1
    place = httpx.URL(url)
    with socket.create_connection((place.host, place.port or 0), timeout=20) as half:
        half.sendall(b"POST /v1/predict HTTP/1.1\r\nHos")
        assert half.recv(100).startswith(b"HTTP/1.1 408 "), "the rest of a head is not waited for forever"


def test_all_resources_that_ray_lacks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.app.ray.cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(CotdError) as caught:
        require_resources(replicas=2, cpus=1.5, gpus=0.25)
    assert [p.partition(" that")[0] for p in caught.value.problems] == [
        "2 replicas of 1.5 CPUs need more than the 2", "2 replicas of 0.25 GPUs need more than the 0",
    ]  # fmt: skip


def test_a_proxy_that_is_too_slow_to_start_is_told_from_one_that_ran_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.app.serve.status", lambda: 1 / 0)  # as Serve itself has died
    assert "the machine is too busy" in start_error(RuntimeError("The actor is dead because it was killed by `ray.kill`."))
    assert "memory runs out" in start_error(RuntimeError("ActorDiedError: its worker was killed by the OOM killer"))


def test_a_port_in_use_is_refused(served: Endpoint) -> None:
    place = httpx.URL(served[0])
    with pytest.raises(CotdError, match=f"cannot listen on 127.0.0.1:{place.port} "):
        require_port(place.host, place.port or 0)


def test_ctrl_c_ends_the_endpoint_and_leaves_nothing(served: Endpoint, environment: dict[str, str]) -> None:
    _, process = served
    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C in a terminal sends, to Ray's processes too
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    lines = output.splitlines()
    assert lines[0].startswith("serving models:/cotd-student@champion at ")
    assert [line for line in lines if line and not line.startswith(("serving", "try:", "stopping", "stopped;"))] == []
    assert marked(environment) == []


def test_sigterm_fails_no_request(student_of: Callable[..., Path], environment: dict[str, str]) -> None:
    """Connections are refused at once, which clients try elsewhere; what is under way is answered, rationales too."""
    port = free_port()
    command = [sys.executable, "-m", "cotd.cli", "serve", "--student", str(student_of("tickets")), "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    url, outcomes = f"http://127.0.0.1:{port}", Counter[Any]()

    def send(body: dict[str, Any]) -> None:
        with httpx.Client(trust_env=False, timeout=30) as client:
            while process.poll() is None:
                try:
                    outcomes[client.post(f"{url}/v1/predict", json=body).status_code] += 1
                except httpx.TransportError as error:
                    outcomes[type(error)] += 1
                    time.sleep(0.05)

    try:
        wait_until(lambda: process.poll() is not None or healthy(url), "the endpoint")
        # HAProxy's pages of statistics listen nowhere.
        wait_until(lambda: listening(environment) == {port}, "HAProxy")
        bodies = [{"texts": ["fine"]}, {"texts": ["fine"] * 256}, {"texts": ["fine"] * 32, "rationale": True}]
        clients = [threading.Thread(target=send, args=(body,)) for body in bodies]
        for client in clients:
            client.start()
        wait_until(lambda: outcomes[200] > 20, "answers")
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        for client in clients:
            client.join()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    assert set(outcomes) <= {200, httpx.ConnectError}, outcomes
    assert process.returncode == 143
    assert "stopped; the endpoint has ended, and no process of it is left." in output
    assert marked(environment) == []


# All that needs a Serve in this process, in one Ray, as starting one takes some twenty seconds.
SESSION = """
import json
import sys
import time
from pathlib import Path
import httpx
from pipelines.cluster.session import ray_session
from serve.environment import prefer_haproxy
prefer_haproxy()
from ray import serve
from serve.app import serving
from serve.client import Client
from serve.settings import Settings

port, mark, texts, choices = int(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])

@serve.deployment(ray_actor_options={"num_cpus": 0})
class Neighbour:
    def __call__(self):
        return "still here"

def break_students():
    # In every worker: a student computes until the file is there; the process that meets it stays broken, as with a GPU.
    # Patched when its module is imported, as most workers do not import PyTorch.
    import sys
    from importlib.machinery import PathFinder
    state = {"broken": False}

    def patch(Served):
        predict = Served.predict
        def predict_until(self, *arguments):
            if mark.exists() or state["broken"]:
                state["broken"] = True
                mark.unlink(missing_ok=True)
                raise RuntimeError("CUDA error: device-side assert triggered")
            return predict(self, *arguments)
        Served.predict = predict_until

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name != "serve.endpoint.served":
                return None
            spec = PathFinder.find_spec(name, path, target)
            load = spec.loader.exec_module
            def load_and_patch(module):
                load(module)
                patch(module.Served)
            spec.loader.exec_module = load_and_patch
            return spec

    sys.meta_path.insert(0, Finder)

def tell(**what):
    print(json.dumps(what), flush=True)

with ray_session(num_cpus=1, runtime_env={"worker_process_setup_hook": break_students}):
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Neighbour.bind(), name="neighbour", route_prefix="/neighbour")
    for folder in sys.argv[5:]:
        with serving(Settings(student=folder, poll_seconds=0), port=port) as url, Client(url, retries=0) as client:
            assert set(serve.status().applications) == {"neighbour", "cotd-student"}
            task = client.model().task
            own = choices if task.needs_choices else None
            rows = [{"text": text} | ({"choices": own[i]} if own else {}) for i, text in enumerate(texts)]
            body = {"dataframe_records": rows, "params": {"rationale": True}}
            invoked = httpx.post(f"{url}/invocations", json=body, trust_env=False, timeout=60)
            predicted = [p.model_dump(exclude_unset=True) for p in client.predict(texts, own, rationale=True)]
            tell(kind=task.kind, client=predicted, invocations=invoked.json()["predictions"])
            if folder == sys.argv[-1]:
                mark.touch()
                def status():
                    answer = httpx.post(f"{url}/v1/predict", json={"texts": "fine"}, trust_env=False, timeout=60)
                    return answer.status_code
                broken = status()
                started = time.monotonic()
                while status() != 200 and time.monotonic() - started < 240:
                    time.sleep(0.5)
                tell(broken=broken, replaced=status())
    left = httpx.get(f"http://127.0.0.1:{port}/neighbour", trust_env=False).text
    tell(left=sorted(serve.status().applications), neighbour=left)
"""
TEXTS, CHOICES = ["Where is milk kept?", "What is red?"], [["a fridge", "a drawer"], ["snow", "a ripe tomato", "coal"]]


@pytest.fixture(scope="module")
def session(
    student_of: Callable[..., Path], environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Path], list[dict[str, Any]]]:
    """The students that were served in turn, beside another application, and what was seen."""
    folders = [student_of(name) for name in ("quiz", "sums", "tickets")]
    mark = tmp_path_factory.mktemp("mark") / "broken"
    command = [sys.executable, "-c", SESSION, str(free_port()), str(mark), json.dumps(TEXTS), json.dumps(CHOICES)]
    done = subprocess.run([*command, *map(str, folders)], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert marked(environment) == []
    return folders, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


Session = tuple[list[Path], list[dict[str, Any]]]


def test_every_kind_of_task(session: Session) -> None:
    folders, seen = session
    answers = seen[: len(folders)]
    assert [answer["kind"] for answer in answers] == ["multiple_choice", "numeric", "classification"]
    for folder, answer in zip(folders, answers, strict=True):
        student = Student.load(folder, "cpu")
        own = CHOICES if student.task.needs_choices else None
        for row, invoked, expected, why in zip(
            answer["client"],
            answer["invocations"],
            student.predict(TEXTS, choices=own),
            student.explain(TEXTS, own),
            strict=True,
        ):
            assert row == invoked
            assert (row["label"], row["rationale"]) == (expected.label, why)
            assert row["probabilities"] == (expected.probabilities and pytest.approx(expected.probabilities, abs=1e-4))


def test_a_replica_whose_student_cannot_compute_is_replaced(session: Session) -> None:
    assert session[1][-2] == {"broken": 500, "replaced": 200}


def test_the_shutdown_leaves_other_applications_alone(session: Session) -> None:
    assert session[1][-1] == {"left": ["neighbour"], "neighbour": "still here"}
