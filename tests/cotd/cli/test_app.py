"""The program as a whole: its help, and its check of the machine."""

from __future__ import annotations

import os
import signal
import time

import pytest
from typer.main import get_command

from cotd.cli.app import Stopped, app, main, stopped_with


def test_every_command_shows_an_example() -> None:
    commands = dict(get_command(app).commands)  # type: ignore[attr-defined]
    commands |= {f"assets {name}": command for name, command in commands.pop("assets").commands.items()}
    assert len(commands) >= 15
    assert [name for name, command in commands.items() if f"cotd {name}" not in (command.help or "")] == []


def test_the_doctor_numbers_its_checks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setattr("sys.argv", ["cotd", "doctor"])
    with pytest.raises(SystemExit):
        main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(". ")[0] for line in lines] == [str(n) for n in range(1, 10)]
    assert "7. MLflow: MLFLOW_TRACKING_URI is http://mlflow:5000" in lines


def test_sigterm_ends_a_command_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    """Or files that are not whole would stay where predictions were to be."""
    previous = signal.signal(signal.SIGTERM, signal.SIG_DFL)

    @stopped_with("out.csv was not written")
    def command() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    try:
        with pytest.raises(Stopped) as stopped:
            command()
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert stopped.value.code == 143
    assert "stopped; out.csv was not written." in capsys.readouterr().err
