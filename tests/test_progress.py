import io
import pathlib
import threading
import time
import types

import pytest
from tqdm.auto import tqdm

from keras_distill import progress
from tests.forking import wait_for


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(
        progress, "time", types.SimpleNamespace(monotonic=lambda: clock.now)
    )
    return clock


def two_minutes(clock, shown, step=0.125):
    for _ in range(round(120 / step)):
        clock.now += step
        shown.set_postfix_str("loss 0.1", False)
        shown.update()


def test_two_minutes_in_a_log_are_at_most_five_lines(clock, monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(progress.sys, "stderr", log)
    with progress.bar("writing", "example", 960, True) as shown:
        two_minutes(clock, shown)
    lines = log.getvalue().splitlines()
    assert 3 <= len(lines) <= 5
    assert "\r" not in log.getvalue()
    assert lines[0].startswith("writing:  25%|")
    assert "240/960 [00:30<01:30" in lines[0]
    assert lines[0].endswith("loss 0.1]")


def test_a_log_of_short_or_silent_work_is_empty(clock, monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(progress.sys, "stderr", log)
    for _ in progress.each(range(29), "reading", "batch", 29, True):
        clock.now += 1
    with progress.bar("writing", "example", None, False) as shown:
        two_minutes(clock, shown)
    assert log.getvalue() == ""


def test_a_total_may_come_late_and_others_may_do_the_work(clock, monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(progress.sys, "stderr", log)
    shown = progress.bar("writing", "example", None, True, initial=5)
    clock.now = 31
    shown.refresh()
    shown.total = 10
    clock.now = 62
    shown.update(7 - shown.n)
    shown.close()
    first, second = log.getvalue().splitlines()
    assert "5example [00:31" in first
    assert "7/10 [01:02<" in second


def test_one_long_step_is_heard_of_too(clock, monkeypatch):
    """Nobody calls it meanwhile, as in a trial of a search or an epoch of minutes."""
    log = io.StringIO()
    monkeypatch.setattr(progress.sys, "stderr", log)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LOOKS", 0.005)

    def lines():
        return log.getvalue().splitlines()

    with progress.bar("search", "trial", 20, True) as shown:
        shown.update(3)
        time.sleep(0.05)
        assert lines() == []
        clock.now = 31
        wait_for(lambda: len(lines()) == 1)
        time.sleep(0.05)
        assert len(lines()) == 1
        clock.now = 62
        wait_for(lambda: len(lines()) == 2)
    clock.now = 93
    time.sleep(0.05)
    assert len(lines()) == 2  # it is over
    assert "3/20 [00:31<02:55" in lines()[0]
    forgotten = progress.bar("search", "trial", 20, True)
    count = threading.active_count()
    del forgotten
    wait_for(lambda: threading.active_count() < count)


def test_each_yields_all_and_counts_them_on_a_terminal(monkeypatch):
    monkeypatch.setattr(progress.sys, "stderr", Terminal())
    assert list(progress.each("abc", "reading", "letter", 3, True)) == ["a", "b", "c"]
    shown = progress.bar("reading", "letter", 3, True)
    assert isinstance(shown, progress.tqdm)
    shown.close()


def test_nothing_else_in_the_package_draws_bars():
    package = pathlib.Path(progress.__file__).parent
    users = {path.name for path in package.rglob("*.py") if "tqdm" in path.read_text()}
    assert users == {"progress.py"}


def test_a_process_of_a_pool_shares_no_lock_with_others():
    """tqdm's own is a semaphore of the system, which a killed process leaves behind."""
    before = tqdm.get_lock()
    try:
        progress.for_one_process()
        assert isinstance(tqdm.get_lock(), type(threading.RLock()))
    finally:
        tqdm.set_lock(before)
