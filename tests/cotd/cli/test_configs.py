"""Studies that ship: listed and copied from a checkout and from a wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cotd.cli.configs import copy, shipped_config, shipped_configs
from cotd.errors import CotdError
from cotd.study.config import load_config

REPOSITORY = Path(__file__).parents[3]


def cotd(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cotd.cli", *arguments], cwd=folder, capture_output=True, text=True, timeout=120
    )


def test_a_shipped_study_is_copied_and_never_overwritten(tmp_path: Path) -> None:
    listed = cotd("configs", folder=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert {line.split()[0] for line in listed.stdout.splitlines()} == set(shipped_configs())
    assert "and what should their weight be?" in listed.stdout, "the first sentence is whole: et al. does not end it"
    assert "cotd sweep" not in listed.stdout
    assert cotd("copy", "demo", ".", folder=tmp_path).returncode == 0
    assert load_config(tmp_path / "demo.yaml").name == "demo"
    again = cotd("copy", "demo", ".", folder=tmp_path)
    assert again.returncode == 2
    assert "demo.yaml exists already" in again.stderr


def test_a_table_is_copied_with_its_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    copy("tickets", Path("mine"))
    config = load_config("mine/tickets.yaml")
    assert config.data.source == "mine/tickets.csv"
    assert Path(config.data.source).is_file()
    with pytest.raises(CotdError, match=r"(?s)mine/tickets.yaml exists already.*mine/tickets.csv exists already"):
        copy("tickets", Path("mine"))


def test_an_unknown_study_names_the_nearest() -> None:
    with pytest.raises(CotdError, match="Did you mean 'demo'"):
        shipped_config("demos")


@pytest.mark.integration
def test_the_wheel_holds_all_that_the_commands_need(tmp_path: Path) -> None:
    """Built from the tree, and run from an empty folder with the wheel in place of the checkout."""
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    tracked = [name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()]
    clean = tmp_path / "clean"  # an earlier build leaves modules in build/ that a wheel would take
    for name in tracked:
        (clean / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, clean / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path), str(clean)]
    built = subprocess.run(build, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("cotd-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    packages = [name for name in tracked if name.split("/")[0] in ("cotd", "pipelines", "serve", "tune_configs")]
    expected = {name.replace("tune_configs/", "cotd/tune_configs/") for name in packages}
    assert not expected - names, "files of the repository that the wheel lacks"
    assert not [n for n in names if n.startswith("tests/")]
    (tmp_path / "empty").mkdir()
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import cotd; assert 'installed' in cotd.__file__; "
        "from cotd.cli import main; main()"
    )
    for arguments in (["configs"], ["copy", "demo", "."], ["demo", "--help"]):
        ran = subprocess.run(
            [sys.executable, "-P", "-c", code, str(tmp_path / "installed"), *arguments], cwd=tmp_path / "empty", capture_output=True,
            text=True, timeout=120,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "empty" / "demo.yaml").is_file()
