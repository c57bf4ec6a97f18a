"""The hub path, against a stand-in hub on loopback that HF_ENDPOINT names: no other host is ever asked.

The libraries read HF_ENDPOINT and HF_HOME when they are imported, so what needs a hub runs in child processes: this
file itself, called with the name of a function in `CHECKS`. It prints JSON, and the tests assert on that.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pytest

# MODEL has safetensors; MODEL_BIN has the same weights in pytorch_model.bin, as google/t5-v1_1-small has them.
MODEL, MODEL_BIN, STUDENT = "stand-in/t5-v1_1-tiny", "stand-in/t5-v1_1-bin", "stand-in/student"
IMDB, YELP, NOWHERE = "stand-in/imdb", "stand-in/yelp_polarity", "stand-in/nowhere"
EXTRA_IDS = [f"<extra_id_{i}>" for i in range(100)]
VOCABULARY = 384  # more rows than the tokenizer has pieces, as T5's embeddings have
SHAPE = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
SENTENCE = "predict: A dull film. The cast is graceful; my verdict is negative."
# What `datasets` makes of HF_ENDPOINT for the hub's data set viewer. It does without where there is none.
VIEWER = "datasets-server.127.0.0.1"


# --- the stand-in hub ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repo:
    """A repository of one commit: file name → content."""

    kind: str  # "models" or "datasets", as in the hub's API
    id: str
    files: dict[str, bytes]

    @property
    def commit(self) -> str:
        digest = hashlib.sha1(self.id.encode())
        for name, content in sorted(self.files.items()):
            digest.update(name.encode() + content)
        return digest.hexdigest()

    def info(self) -> dict[str, Any]:
        names = [{"rfilename": name} for name in sorted(self.files)]
        plain = {"_id": "0" * 24, "id": self.id, "sha": self.commit, "siblings": names, "private": False, "gated": False}
        return plain | {"disabled": False, "downloads": 0, "likes": 0, "tags": [], "lastModified": "2024-01-01T00:00:00.000Z"}

    def entries(self) -> dict[str, dict[str, Any]]:
        """Path → tree entry, of every file and every folder."""
        found: dict[str, dict[str, Any]] = {}
        for name, content in sorted(self.files.items()):
            for parent in Path(name).parents:
                if str(parent) != ".":
                    found[str(parent)] = {"type": "directory", "path": str(parent), "oid": "0" * 40, "size": 0}
            found[name] = {"type": "file", "path": name, "oid": etag(content), "size": len(content)}
        return found


def etag(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\x00" % len(content) + content).hexdigest()


@dataclass
class Hub:
    """The running server, and what it was asked."""

    repos: dict[tuple[str, str], Repo]
    uploads: Path  # a model put here, at OWNER/NAME, is on the hub from then on
    url: str = ""
    requests: list[str] = field(default_factory=list)

    def find(self, kind: str, repo_id: str) -> Repo | None:
        folder = self.uploads / repo_id
        if kind == "models" and folder.is_dir():
            return Repo(kind, repo_id, {p.name: p.read_bytes() for p in folder.iterdir()})
        return self.repos.get((kind, repo_id))


ROUTE = re.compile(
    r"^/api/(?P<api>models|datasets)/(?P<api_id>[^/]+/[^/]+)"
    r"(?:/(?P<what>revision|tree|paths-info)/(?P<api_revision>[^/]+)(?:/(?P<folder>.+))?)?$"
    r"|^/(?P<datasets>datasets/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)$"
)


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    """Answers as huggingface.co does, as far as loading a public model or data set needs it; no redirects, no Xet."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def refuse(self, code: str, commit: str | None = None) -> None:
            known = {"X_Repo_Commit": commit} if commit else {}
            self.answer(404, json.dumps({"error": code}).encode(), X_Error_Code=code, X_Error_Message=code, **known)

        def handle_request(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            hub.requests.append(f"{self.command} {self.path}")
            url = urlsplit(self.path)
            route = ROUTE.match(unquote(url.path))
            if route is None:
                self.refuse("EntryNotFound")
                return
            kind = route["api"] or ("datasets" if route["datasets"] else "models")
            repo = hub.find(kind, route["api_id"] or route["id"])
            if repo is None:
                self.refuse("RepoNotFound")
            elif (route["api_revision"] or route["revision"] or "main") not in ("main", repo.commit):
                self.refuse("RevisionNotFound")
            elif route["file"]:
                self.send_file(repo, route["file"])
            else:
                self.send_listing(repo, route, "recursive" in url.query and "recursive=False" not in url.query, sent)

        def send_file(self, repo: Repo, name: str) -> None:
            content = repo.files.get(name)
            if content is None:
                self.refuse("EntryNotFound", repo.commit)
                return
            headers = {"ETag": f'"{etag(content)}"', "X_Repo_Commit": repo.commit, "Accept_Ranges": "bytes"}
            part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if part:
                start, end = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
                headers["Content_Range"] = f"bytes {start}-{end}/{len(content)}"
                self.answer(206, content[start : end + 1], **headers)
            else:
                self.answer(200, content, **headers)

        def send_listing(self, repo: Repo, route: re.Match[str], recursive: bool, sent: str) -> None:
            entries, folder = repo.entries(), (route["folder"] or "").strip("/")
            if route["what"] == "tree":
                if folder and entries.get(folder, {}).get("type") != "directory":
                    self.refuse("EntryNotFound", repo.commit)
                    return
                within = {p: e for p, e in entries.items() if not folder or p.startswith(folder + "/")}
                answer: Any = [e for p, e in within.items() if recursive or str(Path(p).parent) == (folder or ".")]
            elif route["what"] == "paths-info":
                wanted = json.loads(sent)["paths"] if sent.startswith("{") else parse_qs(sent).get("paths", [])
                answer = [entries[p] for p in ([wanted] if isinstance(wanted, str) else wanted) if p in entries]
            else:
                answer = repo.info()
            self.answer(200, json.dumps(answer).encode(), Content_Type="application/json", X_Repo_Commit=repo.commit)

        do_GET = do_HEAD = do_POST = handle_request

    return Handler


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# --- what lies on it ----------------------------------------------------------------------------------------------------


def made_up_reviews(seed: int, n: int) -> list[tuple[str, int]]:
    """`n` different sentences and their labels, the negative ones first, as IMDb is sorted on the hub."""
    words = {
        0: ["dull", "clumsy", "tiresome", "lifeless", "shallow", "noisy"],
        1: ["moving", "graceful", "funny", "tender", "gripping", "bright"],
    }
    verdict = {0: "my verdict is negative", 1: "my verdict is positive"}
    draw = random.Random(seed)
    rows: dict[str, int] = {}
    while len(rows) < n:
        label = int(len(rows) >= n // 2)
        first, second = draw.sample(words[label], 2)
        thing, part = draw.choice(["film", "story", "sequel", "comedy"]), draw.choice(["cast", "ending", "script", "music"])
        rows[f"A {first} {thing} number {draw.randrange(10_000)}.<br /><br />The {part} is {second}; {verdict[label]}."] = label
    return list(rows.items())


def parquet(rows: list[tuple[str, int]], names: list[str]) -> bytes:
    """Text and ClassLabel columns, with the features in the schema, as `datasets` uploads them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    label = {"names": names, "_type": "ClassLabel"}
    features = {"info": {"features": {"text": {"dtype": "string", "_type": "Value"}, "label": label}}}
    schema = pa.schema({"text": pa.string(), "label": pa.int64()}, metadata={"huggingface": json.dumps(features)})
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), sink)
    return sink.getvalue()


def imdb() -> Repo:
    """Laid out as stanfordnlp/imdb: sorted by label, an unlabelled split, a card that says which file is what."""
    splits = {"train": made_up_reviews(1, 60), "test": made_up_reviews(2, 20)}
    splits["unsupervised"] = [(text, -1) for text, _ in made_up_reviews(3, 10)]
    card = ["---", "configs:", "- config_name: plain_text", "  default: true", "  data_files:"]
    card += [line for s in splits for line in (f"  - split: {s}", f"    path: data/{s}-*")] + ["---", "# Stand-in", ""]
    files = {f"data/{s}-00000-of-00001.parquet": parquet(rows, ["neg", "pos"]) for s, rows in splits.items()}
    return Repo("datasets", IMDB, files | {"README.md": "\n".join(card).encode()})


def yelp() -> Repo:
    """Labels 0 and 1 that are *named* "1" and "2", as fancyzhx/yelp_polarity's are; no card, no validation split."""
    splits = {"train": made_up_reviews(4, 30), "test": made_up_reviews(5, 12)}
    files = {f"data/{s}-00000-of-00001.parquet": parquet(rows, ["1", "2"]) for s, rows in splits.items()}
    return Repo("datasets", YELP, files)


def sentencepiece_model() -> bytes:
    """A unigram model with T5's special pieces; the label words are frequent enough to become pieces."""
    import sentencepiece

    texts = [text.replace("<br />", " ") for text, _ in made_up_reviews(1, 60)]
    lines = [f"{prefix}: {text}" for prefix in ("predict", "explain") for text in texts] + ["negative", "positive"] * 20
    sink = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=sink, model_type="unigram", vocab_size=250, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", num_threads=1, minloglevel=2,
    )  # fmt: skip
    return sink.getvalue()


def t5_weights() -> dict[str, np.ndarray]:
    """Random weights under the names that T5 v1.1 checkpoints have, scaled as T5 starts; `lm_head` is not `shared`."""
    draw = np.random.default_rng(0)
    d_model, inner, d_ff, heads = SHAPE["d_model"], SHAPE["d_kv"] * SHAPE["num_heads"], SHAPE["d_ff"], SHAPE["num_heads"]
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (VOCABULARY, d_model), "lm_head.weight": (VOCABULARY, d_model)}
    for stack, attentions in (("encoder", ["SelfAttention"]), ("decoder", ["SelfAttention", "EncDecAttention"])):
        shapes[f"{stack}.final_layer_norm.weight"] = (d_model,)
        shapes[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, heads)
        for block in range(SHAPE["num_layers"]):
            prefix = f"{stack}.block.{block}.layer"
            for i, attention in enumerate(attentions):
                shapes |= {f"{prefix}.{i}.{attention}.{m}.weight": (inner, d_model) for m in "qkv"}
                shapes[f"{prefix}.{i}.{attention}.o.weight"] = (d_model, inner)
            dense = f"{prefix}.{len(attentions)}.DenseReluDense"
            shapes |= {f"{dense}.wi_0.weight": (d_ff, d_model), f"{dense}.wi_1.weight": (d_ff, d_model)}
            shapes[f"{dense}.wo.weight"] = (d_model, d_ff)
            shapes |= {f"{prefix}.{i}.layer_norm.weight": (d_model,) for i in range(len(attentions) + 1)}
    scale = {"shared": 1.0, "lm_head": 1.0}
    weights = {}
    for name, shape in shapes.items():
        normal = draw.normal(0.0, scale.get(name.split(".")[0], shape[-1] ** -0.5), shape)
        weights[name] = (np.ones(shape) if len(shape) == 1 else normal).astype(np.float32)
    return weights


def t5_v1_1(repo_id: str, weights: dict[str, bytes], spiece: bytes) -> Repo:
    """Laid out as google/t5-v1_1-small: gated GELU, an output layer of its own, `spiece.model` and no tokenizer.json."""
    config = {
        "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
        "dropout_rate": 0.1, "initializer_factor": 1.0, "is_encoder_decoder": True, "layer_norm_epsilon": 1e-6,
        "output_past": True, "relative_attention_num_buckets": 32, "use_cache": True, "vocab_size": VOCABULARY, **SHAPE,
    }  # fmt: skip
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "additional_special_tokens": EXTRA_IDS}
    plain: dict[str, Any] = {
        "config.json": config, "special_tokens_map.json": special, "tokenizer_config.json": special | {"extra_ids": 100},
        "generation_config.json": {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0},
    }  # fmt: skip
    texts = {name: json.dumps(content, indent=2).encode() for name, content in plain.items()}
    return Repo("models", repo_id, {**texts, "spiece.model": spiece, **weights})


def models() -> list[Repo]:
    import torch
    from safetensors.numpy import save

    arrays, spiece, sink = t5_weights(), sentencepiece_model(), io.BytesIO()
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    # The published .bin files name the one input embedding three times.
    torch.save(tensors | {f"{s}.embed_tokens.weight": tensors["shared.weight"] for s in ("encoder", "decoder")}, sink)
    return [
        t5_v1_1(MODEL, {"model.safetensors": save(arrays, {"format": "pt"})}, spiece),
        t5_v1_1(MODEL_BIN, {"pytorch_model.bin": sink.getvalue()}, spiece),
    ]


def digests(weights: dict[str, np.ndarray]) -> dict[str, str]:
    return {name: hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() for name, array in weights.items()}


# --- the checks, each run in a child process ----------------------------------------------------------------------------


def refusal(action: Callable[[], Any]) -> dict[str, Any]:
    """How an action that must fail did so: the exception's type and what it says; type None where it did not fail."""
    try:
        action()
    except Exception as error:  # noqa: BLE001
        return {"type": type(error).__name__, "message": str(error)}
    return {"type": None, "message": ""}


def load_data() -> dict[str, Any]:
    from cotd.data.config import DataConfig
    from cotd.data.sources import load_examples

    answer: dict[str, Any] = {}
    for source in (IMDB, YELP):
        reviews = load_examples(DataConfig(source=source))
        table = reviews.table.to_dict("records")
        answer[source] = {"table": table, "counts": reviews.counts, "digest": reviews.digest()}
    answer["again"] = load_examples(DataConfig(source=IMDB)).digest()
    answer["missing"] = refusal(lambda: load_examples(DataConfig(source=NOWHERE)))
    return answer


def use_model() -> dict[str, Any]:
    """Loads the base model in all ways, trains it, loads the student; everything in one child, to import torch once."""
    from cotd.students.base_models import load_base, model_digest
    from cotd.students.student import Student, first_tokens
    from cotd.tasks.registry import SENTIMENT

    loaded = {}
    for source in (MODEL, MODEL_BIN):
        model, tokenizer = load_base(source)
        embeddings = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
        state = {name: tensor.numpy() for name, tensor in model.state_dict().items() if name not in embeddings}
        loaded[source] = {"digests": digests(state), "scaled": model.config.scale_decoder_outputs, "dtype": str(model.dtype)}
    ids = tokenizer(SENTENCE)["input_ids"]
    return {
        "loaded": loaded, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=True),
        "first_tokens": tokenizer.convert_ids_to_tokens(first_tokens(tokenizer, SENTIMENT)),
        "extra_id_0": tokenizer.convert_tokens_to_ids("<extra_id_0>"),
        "digests": {source: model_digest(source) for source in (MODEL, MODEL_BIN)},
        "missing": {f.__name__: refusal(lambda f=f: f(NOWHERE)) for f in (load_base, model_digest)},
        "bare": refusal(lambda: Student.load(MODEL)), **train(),
    }  # fmt: skip


def train() -> dict[str, Any]:
    import pandas as pd

    from cotd.students.student import Student

    study = {
        "name": "hub", "data": {"source": IMDB}, "sizes": {"hub": MODEL, "nowhere": NOWHERE},
        "grid": {"method": ["finetune"], "fraction": [1.0], "size": ["hub"], "seed": [0]},
        "training": {"steps": 6, "batch_size": 8, "eval_every": 3, "warmup_steps": 0, "max_input_tokens": 64},
    }  # fmt: skip
    Path("study.yaml").write_text(json.dumps(study))  # JSON is YAML
    runs = {"trained": cotd("train", "study.yaml"), "missing": cotd("train", "study.yaml", "grid.size=[nowhere]")}
    (folder,) = Path("runs/hub/trials").iterdir()
    answer = {"runs": runs, "result": json.loads((folder / "result.json").read_text())}
    student = Student.load(folder / "student", device="cpu")
    kept = pd.read_parquet(folder / "predictions.parquet")
    reviews = pd.read_parquet(next(Path("runs/hub/data").glob("reviews-*.parquet"))).set_index("id")
    texts = list(reviews.loc[kept["review_id"], "text"])
    answer |= {"kept": list(kept["probability_positive"]), "labels": list(kept["predicted"])}
    answer |= {"base": student.card["base"], "predicted": [p.label for p in student.predict(texts)]}
    answer["reloaded"] = [p.probabilities["positive"] for p in student.predict(texts)]
    shutil.copytree(folder / "student", Path(os.environ["STAND_IN_UPLOADS"]) / STUDENT)
    answer["from_hub"] = refusal(lambda: answer.update(hub=[p.label for p in Student.load(STUDENT).predict(texts)]))
    return answer


def cotd(*arguments: str) -> dict[str, Any]:
    """The command line, in this process."""
    from cotd.cli.app import main

    sys.argv = ["cotd", *arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def find_no_hub() -> dict[str, Any]:
    """The pauses between the libraries' retries are counted and not waited for."""
    from cotd.data.config import DataConfig
    from cotd.data.sources import load_examples
    from cotd.students.base_models import load_base, model_digest

    answer: dict[str, Any] = {}
    actions = {"data": lambda: load_examples(DataConfig(source=IMDB)), "digest": lambda: model_digest(MODEL)}
    for name, action in {**actions, "base": lambda: load_base(MODEL)}.items():
        pauses: list[float] = []
        time.sleep, started = pauses.append, time.monotonic()
        refused = refusal(action)
        answer[name] = {**refused, "seconds": time.monotonic() - started + sum(pauses)}
    return answer


CHECKS: dict[str, Callable[[], dict[str, Any]]] = {f.__name__: f for f in (load_data, use_model, find_no_hub)}


def guard_names() -> list[str]:
    """From here on no host but 127.0.0.1 is looked up; returns the list of the others asked for, which grows."""
    strangers: list[str] = []
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host)
        if name not in ("127.0.0.1", "localhost", "None"):
            strangers.append(name)
            raise socket.gaierror(socket.EAI_NONAME, "no host but the stand-in is asked")
        return look_up(host, *args, **kwargs)

    socket.getaddrinfo = getaddrinfo
    return strangers


def start_check(check: Callable[[], dict[str, Any]], hub: Hub, home: Path) -> subprocess.Popen[str]:
    """Starts a check in a child of its own, with an empty cache in `home`."""
    inherited = {k: v for k, v in os.environ.items() if not (k.lower().endswith("_proxy") or k.startswith(("HF_", "MLFLOW_")))}
    env = inherited | {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "DISABLE_SAFETENSORS_CONVERSION": "1", "STAND_IN_UPLOADS": str(hub.uploads), "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    command = [sys.executable, "-P", str(Path(__file__).resolve()), check.__name__]
    return subprocess.Popen(command, env=env, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer_of(child: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = child.communicate(timeout=240)
    assert child.returncode == 0, err[-4000:]
    return json.loads(out.splitlines()[-1])


# --- the tests ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    repos = [imdb(), yelp(), *models()]
    running = Hub({(r.kind, r.id): r for r in repos}, tmp_path_factory.mktemp("uploads"))
    with serving(running):
        yield running


@pytest.fixture(scope="module")
def answers(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Callable[..., Any]], dict[str, Any]]]:
    """What each check answered; they run at once, as each takes seconds to import what it needs."""
    gone = Hub({}, tmp_path_factory.mktemp("no-uploads"))
    with serving(gone):
        pass
    hubs = {use_model: hub, load_data: hub, find_no_hub: gone}
    children = {check: start_check(check, hubs[check], tmp_path_factory.mktemp(check.__name__)) for check in hubs}
    yield functools.cache(lambda check: answer_of(children[check]))
    for child in children.values():
        with child:
            child.kill()


Answers = Callable[[Callable[..., Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def data(answers: Answers) -> dict[str, Any]:
    return answers(load_data)


@pytest.fixture(scope="module")
def model(answers: Answers) -> dict[str, Any]:
    return answers(use_model)


@pytest.fixture(scope="module")
def unreachable(answers: Answers) -> dict[str, Any]:
    return answers(find_no_hub)


def clean(rows: list[tuple[str, int]]) -> set[tuple[str, str]]:
    return {(text.replace("<br /><br />", " "), ("negative", "positive")[label]) for text, label in rows}


def kept(table: list[dict[str, Any]], *splits: str) -> set[tuple[str, str]]:
    return {(row["text"], row["label"]) for row in table if row["split"] in splits}


def test_imdb_gives_a_review_table(data: dict[str, Any]) -> None:
    table, counts = data[IMDB]["table"], data[IMDB]["counts"]
    assert kept(table, "test") == clean(made_up_reviews(2, 20))
    assert kept(table, "train", "validation") == clean(made_up_reviews(1, 60))
    assert counts["rows"] == 80, "the unsupervised split is left out"
    assert counts["quarantined"] == counts["repeats"] == 0
    assert len(kept(table, "validation")) == counts["kept_validation"] > 0, "validation is carved from train"
    assert data["again"] == data[IMDB]["digest"], "the cached copy is the same"


def test_labels_are_read_as_numbers_whatever_their_names(data: dict[str, Any]) -> None:
    assert kept(data[YELP]["table"], "test") == clean(made_up_reviews(5, 12))
    assert kept(data[YELP]["table"], "train", "validation") == clean(made_up_reviews(4, 30))


def test_a_data_set_that_is_not_there_is_named(data: dict[str, Any]) -> None:
    assert data["missing"]["type"] == "CotdError"
    assert NOWHERE in data["missing"]["message"]
    assert "Check its name" in data["missing"]["message"]
    assert "embedded:rotten-tomatoes" in data["missing"]["message"]


def test_only_the_named_hub_is_asked(data: dict[str, Any], model: dict[str, Any]) -> None:
    assert set(data["strangers"] + model["strangers"]) <= {VIEWER}


@pytest.mark.parametrize("source", [MODEL, MODEL_BIN])
def test_a_t5_v1_1_loads_with_every_weight(model: dict[str, Any], source: str) -> None:
    loaded = model["loaded"][source]
    assert loaded["digests"] == digests(t5_weights()), "no weight is missing, new or tied to another"
    assert loaded["dtype"] == "torch.float32"
    assert not loaded["scaled"], "v1.1 does not scale what goes into its output layer"


def test_a_sentencepiece_tokenizer_loads_as_it_is(model: dict[str, Any], hub: Hub) -> None:
    import sentencepiece

    spiece = hub.repos["models", MODEL].files["spiece.model"]
    pieces = sentencepiece.SentencePieceProcessor(model_proto=spiece)
    assert model["ids"] == [*pieces.encode(SENTENCE), 1]
    assert model["decoded"] == SENTENCE
    assert model["extra_id_0"] == pieces.vocab_size() + 99
    assert model["first_tokens"] == ["▁negative", "▁positive"]


def test_model_digests_tell_models_apart(model: dict[str, Any]) -> None:
    assert len(set(model["digests"].values())) == 2


def test_a_model_digest_names_the_commit(model: dict[str, Any], hub: Hub) -> None:
    commit = hub.repos["models", MODEL].commit
    assert model["digests"][MODEL] == hashlib.sha256(f"{MODEL}@{commit}".encode()).hexdigest()[:16]


@pytest.mark.parametrize("function", ["load_base", "model_digest"])
def test_a_model_that_is_not_there_is_named(model: dict[str, Any], function: str) -> None:
    refused = model["missing"][function]
    assert refused["type"] == "CotdError"
    assert NOWHERE in refused["message"]
    assert "Check the id" in refused["message"]
    assert "embedded:t5-mini" in refused["message"]


def test_a_bare_model_is_no_student(model: dict[str, Any]) -> None:
    assert model["bare"]["type"] == "CotdError"
    assert MODEL in model["bare"]["message"]


def test_train_on_the_hub_s_reviews_and_model(data: dict[str, Any], model: dict[str, Any]) -> None:
    assert model["runs"]["trained"]["code"] == 0, model["runs"]["trained"]["err"]
    result = model["result"]
    assert (result["steps"], result["train_reviews"], result["test"]["n"]) == (6, data[IMDB]["counts"]["kept_train"], 20)
    assert result["parameters"] == sum(array.size for array in t5_weights().values())
    assert model["base"] == MODEL


def test_the_saved_student_predicts_what_the_trained_one_did(model: dict[str, Any]) -> None:
    assert model["reloaded"] == pytest.approx(model["kept"], abs=1e-5)
    assert model["predicted"] == model["labels"]


def test_a_student_loads_from_the_hub(model: dict[str, Any]) -> None:
    assert model["from_hub"]["type"] is None, model["from_hub"]["message"]
    assert model["hub"] == model["labels"]


def test_training_a_model_that_is_not_there_ends_in_one_line(model: dict[str, Any]) -> None:
    run = model["runs"]["missing"]
    assert run["code"] == 2
    assert run["err"].count("error:") == 1
    assert NOWHERE in run["err"]
    assert "Traceback" not in run["err"]


@pytest.mark.parametrize("what", ["data", "digest", "base"])
def test_an_unreachable_hub_ends_in_an_error(unreachable: dict[str, Any], what: str) -> None:
    refused = unreachable[what]
    assert refused["type"] == "CotdError"
    assert {"data": IMDB, "digest": MODEL, "base": MODEL}[what] in refused["message"]
    assert "network" in refused["message"]
    assert refused["seconds"] < 120


if __name__ == "__main__":
    asked = guard_names()
    print("\n" + json.dumps(CHECKS[sys.argv[1]]() | {"strangers": asked}))
