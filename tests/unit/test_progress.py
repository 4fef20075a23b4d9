"""What a person sees of long work."""

import io
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console
from rich.progress import Progress

from lasa import progress


@pytest.fixture
def log(monkeypatch):
    """What a log shows."""
    written = io.StringIO()
    monkeypatch.setattr(progress, "_console", Console(file=written))
    return written


def read_by_a_judge():
    with progress.progress("Reading", 5, "answers") as advance:
        advance(5)


def test_work_within_other_work_has_no_bar_of_its_own(log):
    """A judge that reads answers beside the next batch drew a bar into that of the answers, six times a system."""
    with progress.progress("Answering", 10, "prompts") as advance, ThreadPoolExecutor() as pool:
        for _ in range(2):
            pool.submit(read_by_a_judge).result()
            advance(5)
    lines = log.getvalue().split("\n")
    assert [line for line in lines if line.strip()] == [lines[-2]]
    assert lines[-2].startswith("Answering: 10 prompts in ")


@pytest.mark.parametrize("moment", ["start", "stop"])
def test_work_in_another_thread_has_none_while_a_bar_comes_or_goes(moment, log, monkeypatch):
    """Of two threads that began at once, both drew: rich 13.9 ends the second one's work for that."""
    as_usual = getattr(Progress, moment)

    def slowly(bars):
        monkeypatch.setattr(Progress, moment, as_usual)
        with ThreadPoolExecutor() as pool:
            pool.submit(read_by_a_judge).result()
        as_usual(bars)

    monkeypatch.setattr(Progress, moment, slowly)
    with progress.progress("Answering", 10, "prompts"):
        pass
    assert "Answering" in log.getvalue() and "Reading" not in log.getvalue()


def test_work_after_other_work_has_one_even_where_that_failed(log):
    with pytest.raises(OSError, match="disk"), progress.progress("Answering", 10, "prompts"):
        raise OSError("disk")
    read_by_a_judge()
    assert "Reading: 5 answers in" in log.getvalue()


def test_a_library_prints_nothing_and_what_is_said_once_is_said_once(log, monkeypatch):
    progress.say_once("two files look like one")
    progress.say_once("two files look like one")
    assert log.getvalue().count("look like one") == 1
    monkeypatch.setattr(progress, "_console", None)
    read_by_a_judge()
    progress.say("not shown")
    assert "Reading" not in log.getvalue() and "not shown" not in log.getvalue()
