import io

import pytest
from rich.console import Console

from vgsplus import progress
from vgsplus.progress import SILENT, clock, console_progress


@pytest.fixture
def lines(monkeypatch):
    """A display without a terminal, its clock, and what it printed."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO())
    return console_progress(console), now, lambda: console.file.getvalue().splitlines()


def test_a_line_comes_every_half_minute_and_at_the_end(lines):
    display, now, printed = lines
    for second in range(101):
        now[0] = float(second)
        display.update("sounds", second, 100, detail="loss 0.5")
    display.update("sounds", 100, 100)
    assert printed() == [
        "sounds: 30/100  loss 0.5  0:01:10 left",
        "sounds: 60/100  loss 0.5  0:00:40 left",
        "sounds: 90/100  loss 0.5  0:00:10 left",
        "sounds: 100/100  loss 0.5",
    ]


def test_items_from_before_do_not_count_into_the_rate(lines):
    display, now, printed = lines
    display.update("steps", 900, 1000)
    now[0] = 40.0
    display.update("steps", 920, 1000)
    assert printed() == ["steps: 920/1000  0:02:40 left"]


def test_a_total_may_be_unknown(lines):
    display, now, printed = lines
    display.update("steps", 1)
    now[0] = 31.0
    display.update("steps", 2)
    display.note("a note")
    assert printed() == ["steps: 2", "a note"]


def test_bytes_are_printed_with_their_unit():
    console = Console(file=io.StringIO())
    console_progress(console, in_bytes=True).update("file", 2_000_000, 2_000_000)
    assert console.file.getvalue() == "file: 2.0 MB/2.0 MB\n"


def test_a_terminal_shows_bars_of_every_stage():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with console_progress(console) as display:
        display.update("read", 1, 2)
        display.update("write", 3, None, detail="loss 0.5")
        display.note("[a note]")
    shown = console.file.getvalue()
    assert all(text in shown for text in ("read", "1/2", "write", "loss 0.5", "[a note]"))


def test_silence_takes_everything():
    with SILENT as display:
        display.update("read", 1, 2)
        display.note("a note")


def test_seconds_are_shown_as_a_clock():
    assert [clock(s) for s in (0, 59.6, 3661)] == ["0:00:00", "0:01:00", "1:01:01"]
