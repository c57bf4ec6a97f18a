"""Every command in the README parses, and the blocks marked with `<!-- run -->` are executed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from cotd.cli import app
from cotd.cli.app import main

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(<!-- run -->\n)?```(bash|python|yaml|csv)( [\w./-]+)?\n(.*?)```", re.DOTALL)
BLOCKS = [(bool(run), kind, (name or "").strip(), body) for run, kind, name, body in BLOCK.findall(README)]


def commands() -> list[str]:
    """The lines of the README's shell blocks, continued lines joined, comments off."""
    lines = [line for _, kind, _, body in BLOCKS if kind == "bash" for line in body.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.strip() and not line.startswith("#")]


@pytest.mark.parametrize("line", [c for c in commands() if shlex.split(c, comments=True)[0].endswith("cotd")])
def test_cotd_commands_parse(line: str) -> None:
    words = shlex.split(line.split("|")[0].split("<")[0].split(">")[0], comments=True)[1:]
    command = typer.main.get_command(app)
    name = "cotd"
    while words and words[0] in getattr(command, "commands", {}):
        name = words.pop(0)
        command = command.commands[name]
    command.make_context(name, words)  # raises on unknown options and missing arguments


@pytest.mark.parametrize("line", [c for c in commands() if c.startswith("make ")])
def test_make_targets_exist(line: str) -> None:
    targets = [w for w in shlex.split(line, comments=True)[1:] if "=" not in w]
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def run_installed(line: str) -> None:
    """A command as a reader's shell finds it."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def run_here(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `cotd` command in this process, which has PyTorch already: to import it takes seconds."""
    monkeypatch.setattr("sys.argv", shlex.split(line, comments=True))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None), line


def test_marked_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one folder, in the order of the README, as a reader would; named blocks are files to write first."""
    (tmp_path / "tune_configs").symlink_to(REPOSITORY / "tune_configs")
    monkeypatch.chdir(tmp_path)
    ran = []
    for run, kind, name, body in BLOCKS:
        if name:
            Path(name).write_text(body, encoding="utf-8")
        if run and kind == "python":
            exec(compile(body, "README.md", "exec"), {})
        for line in body.splitlines() if run and kind == "bash" else []:
            assert line.startswith("cotd "), "other commands are not run here"
            if ran:
                run_here(line, monkeypatch)
            else:
                run_installed(line)
        if run:
            ran.append(body)
    assert len(ran) >= 3
