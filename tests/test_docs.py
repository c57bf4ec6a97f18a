"""README and docs: every command parses, every make target exists, and the blocks marked with `<!-- run -->` are executed."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from cotd.cli import app, main
from cotd.training.methods import METHODS

REPOSITORY = Path(__file__).parent.parent
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- run -->\n)?```(bash|python|yaml|csv)(?: title=\"([\w./-]+)\")?\n(.*?)```", re.DOTALL)


def blocks(page: Path) -> list[tuple[bool, str, str, str]]:
    """(whether it is run, language, file name, content) of each fenced block of a page."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(bool(run), kind, name, body) for run, kind, name, body in found]


def commands() -> list[str]:
    """The lines of all shell blocks, continued lines joined, comments off."""
    bodies = [body for page in PAGES for _, kind, _, body in blocks(page) if kind == "bash"]
    lines = dict.fromkeys(line for body in bodies for line in body.replace("\\\n", " ").splitlines())
    return [line for line in lines if line.strip() and not line.startswith("#")]


def program(line: str) -> str:
    words = [w for w in shlex.split(line, comments=True) if not re.fullmatch(r"[A-Z_]+=\S*", w)]
    return words[0] if words else ""


@pytest.mark.parametrize("line", [c for c in commands() if program(c).endswith("cotd")])
def test_cotd_commands_parse(line: str) -> None:
    words = shlex.split(line.split("|")[0].split("<")[0].split(">")[0], comments=True)
    words = words[words.index(program(line)) + 1 :]
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    """Paths of this repository that a page names."""
    named = set(
        re.findall(
            r"(?<![\w/])(?:cotd|pipelines|serve|tests|tune_configs|docs)/[\w/-]+\.(?:py|yaml|md|json|png)", page.read_text()
        )
    )
    missing = [name for name in sorted(named) if not (REPOSITORY / name).is_file()]
    assert not missing, missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_are_drawn_as_code(page: Path) -> None:
    """MkDocs takes one whose first line has anything but a language and a title for text."""
    lines = re.findall(r"^ *```.*", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert [line for line in lines if not re.fullmatch(r" *```(\w+( title=\"[^\"]+\")?)?", line)] == []


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


RUN = [page for page in PAGES if any(run for run, *_ in blocks(page))]


@pytest.mark.integration
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_marked_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one folder, in the order of the page, as a reader would; named blocks are files to write first."""
    (tmp_path / "tune_configs").symlink_to(REPOSITORY / "tune_configs")
    monkeypatch.chdir(tmp_path)
    first = page == RUN[0]
    for run, kind, name, body in blocks(page):
        if name:
            Path(name).write_text(body, encoding="utf-8")
        if run and kind == "python":
            exec(compile(body, page.name, "exec"), {})
        for line in body.splitlines() if run and kind == "bash" else []:
            assert line.startswith("cotd "), "other commands are not run here"
            if first:
                run_installed(line)
                first = False
            else:
                run_here(line, monkeypatch)


def test_the_table_of_methods_is_that_of_the_code() -> None:
    """Who reads the source, and not what `make docs` builds, sees a copy of it."""
    specification = importlib.util.spec_from_file_location("generate", REPOSITORY / "docs" / "generate.py")
    assert specification
    assert specification.loader
    generate = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(generate)
    page = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8")
    assert f"<!-- generated: methods -->\n{generate.methods()}\n<!-- end -->\n" in page
    built = generate.on_page_markdown(page)
    assert built.count(generate.methods()) == 1
    assert "generated:" not in built


def test_the_readme_counts_the_methods_and_is_short() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert f"**{len(METHODS)} methods** in one grid" in text
    assert len(text.splitlines()) <= 200
    assert len(text.encode()) <= 14_000
    assert max(map(len, text.splitlines())) <= 120


def test_some_pages_are_run() -> None:
    assert {"quickstart.md", "your-data.md"} <= {page.name for page in RUN}
