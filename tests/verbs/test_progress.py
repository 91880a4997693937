"""Progress is a bar on a terminal and plain lines in a log, never on stdout."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from deepshadows.verbs import progress
from deepshadows.verbs.progress import ScoringNote, track

RECEIPTS = [
    {"scored": 900, "flag_counts": '{"SATURATED": 2, "SOME_MASKED": 1}', "quarantined": False},
    {"scored": 0, "flag_counts": "{}", "quarantined": True},
    {"scored": 100, "flag_counts": '{"SATURATED": 1}', "quarantined": False},
]
IN_A_TERMINAL = f"""
import time
from deepshadows.verbs.progress import ScoringNote, track
for _ in track({RECEIPTS}, "scoring units", 3, ScoringNote()):
    time.sleep(0.2)
"""


def test_a_log_gets_one_plain_line_an_interval(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four units, ten seconds each: a line every twenty seconds, and one at the end."""
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
    monkeypatch.setattr(progress, "LOG_INTERVAL_S", 20.0)
    assert list(track("abcd", "counting", 4, note=lambda item: f"at {item}")) == list("abcd")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "counting: 2/4, at b, 0:00:20 to go",
        "counting: 4/4, at d, 0:00:00 to go",
        "counting: 4/4 in 50.0 s, at d",
    ]


def test_what_is_said_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter((0.0, 1.0, 2.0, 4.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    note = ScoringNote()
    assert [note(receipt) for receipt in RECEIPTS] == [
        "900 images/s, 3 flags, 0 quarantined",
        "450 images/s, 3 flags, 1 quarantined",
        "250 images/s, 4 flags, 1 quarantined",
    ]


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    terminal, screen = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", IN_A_TERMINAL], stdout=out, stderr=screen, stdin=screen, env=environment
        )
        os.close(screen)
        shown = b""
        while True:
            try:
                part = os.read(terminal, 4096)
            except OSError:  # the other end has been closed
                break
            if not part:
                break
            shown += part
        assert process.wait(timeout=30) == 0
    os.close(terminal)
    assert (tmp_path / "out").read_bytes() == b""
    assert b"\x1b[" in shown
    assert b"3/3" in shown
    assert b"4 flags, 1 quarantined" in shown
