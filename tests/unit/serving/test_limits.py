import pytest

from lasa.serving import limits
from lasa.serving.limits import KeyLimits


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
    return now


def test_requests_in_flight_are_counted_by_key_until_they_leave():
    kept = KeyLimits(2, 0)
    assert [kept.enter("a"), kept.enter("a"), kept.enter("b")] == [None, None, None]
    assert kept.enter("a") == ("2 requests at the same time", 1)
    kept.leave("a")
    assert kept.enter("a") is None


def test_requests_of_any_minute_are_counted_by_key_and_those_turned_away_are_not(clock):
    kept = KeyLimits(0, 2)
    assert kept.enter("a") is None
    clock[0] += 20
    assert kept.enter("a") is None
    clock[0] += 20.5
    assert [kept.enter("a") for _ in range(3)] == [("2 requests a minute", 20)] * 3
    assert kept.enter("b") is None
    clock[0] += 20
    assert kept.enter("a") is None
    assert kept.enter("a") == ("2 requests a minute", 20)


def test_without_limits_everything_is_let_in():
    kept = KeyLimits(0, 0)
    assert {kept.enter("a") for _ in range(1000)} == {None}
