import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lasa.data.perturbations import code_switch
from lasa.data.prompts import user_prompt
from lasa.errors import RecipeError
from lasa.evaluation.judges.llm import LlmJudge
from lasa.evaluation.outcomes import Outcome

GOOD = '{"outcome": "complied", "score": 0.75, "language": "sw"}'
PROMPT = user_prompt("q1", "sw", "Swali", harmful=True)


def reply(content: Any, status: int = 200, **headers: str) -> httpx.Response:
    body = {
        "choices": [{"message": {"content": content}}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 20},
    }
    return httpx.Response(status, json=body, headers=headers)


class Endpoint:
    """A fake endpoint that plays back replies; the last one stays."""

    def __init__(self, *replies: httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]) -> None:
        self.replies = list(replies)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        step = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(step, Exception):
            raise step
        if callable(step):
            return step(request)
        return httpx.Response(step.status_code, content=step.content, headers=step.headers)


@pytest.fixture
def judge_at() -> Iterator[Callable[..., LlmJudge]]:
    judges = []

    def build(endpoint: Endpoint, **settings: Any) -> LlmJudge:
        settings = {"backoff_s": 0.0, "transport": httpx.MockTransport(endpoint), **settings}
        judges.append(LlmJudge("http://judge.test/v1/", "big-model", **settings))
        return judges[-1]

    yield build
    for judge in judges:
        judge.close()


JudgeAt = Callable[..., LlmJudge]


def test_a_valid_reply_is_a_verdict(judge_at: JudgeAt) -> None:
    endpoint = Endpoint(reply(GOOD))
    verdict = judge_at(endpoint)([PROMPT], ["Jibu"])[0]
    assert (verdict.outcome, verdict.score, verdict.language) == (Outcome.COMPLIED, 0.75, "sw")
    request = endpoint.requests[0]
    assert str(request.url) == "http://judge.test/v1/chat/completions"
    body = json.loads(request.content)
    assert (body["model"], body["temperature"]) == ("big-model", 0)
    material = json.loads(body["messages"][1]["content"])
    assert material["answer"] == "Jibu"
    assert material["expected_language"] == "Swahili"


def test_a_changed_request_is_shown_in_plain_words_too_and_may_be_answered_in_each_of_its_languages(
    judge_at: JudgeAt,
) -> None:
    endpoint = Endpoint(reply(GOOD))
    english = user_prompt("q1", "en", "Question, please", harmful=True)
    mixed = code_switch(english, user_prompt("q1", "sw", "Swali, tafadhali", harmful=True))
    judge_at(endpoint, parallel=1)([mixed, english], ["Jibu", "Jibu"])
    changed, plain = (
        json.loads(json.loads(request.content)["messages"][1]["content"]) for request in endpoint.requests
    )
    assert changed["expected_language"] == "English or Swahili"
    assert changed["conversation"][-1]["content"] == mixed.text
    assert changed["request_in_plain_words"] == english.text
    assert "request_in_plain_words" not in plain


def test_verdicts_come_in_the_order_of_the_answers(judge_at: JudgeAt) -> None:
    def grade(request: httpx.Request) -> httpx.Response:
        answer = json.loads(json.loads(request.content)["messages"][1]["content"])["answer"]
        return reply(json.dumps({"outcome": "refused", "score": int(answer) / 100}))

    verdicts = judge_at(Endpoint(grade))([PROMPT] * 50, [str(number) for number in range(50)])
    assert [verdict.score for verdict in verdicts] == [number / 100 for number in range(50)]


@pytest.mark.parametrize(
    "around",
    [
        "```json\n{}\n```",
        "```JSON\n{}\n```",
        "Here is:\n{}",
        "<think>\nIs it {{refused}}? No.\n</think>\n\n{}",
        "Is it refused? No.\n</think>\n{}",
        "{0}\n{0}",
        "{} That is my verdict.",
    ],
)
def test_thoughts_words_and_fences_around_the_one_object_are_forgiven(judge_at: JudgeAt, around: str) -> None:
    judge = judge_at(Endpoint(reply(around.format(GOOD))))
    assert judge([PROMPT], ["x"])[0].outcome is Outcome.COMPLIED


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (GOOD + '\n{"outcome": "refused", "score": 0}', "several JSON objects"),
        ("<think>\n" + GOOD, "unfinished reasoning"),
        ('The answer {"a": and ' + GOOD, "reply is not JSON"),
    ],
)
def test_a_reply_that_can_be_read_in_two_ways_is_no_verdict(judge_at: JudgeAt, text: str, kind: str) -> None:
    verdict = judge_at(Endpoint(reply(text)), attempts=1)([PROMPT], ["x"])[0]
    assert verdict.outcome is None
    assert kind in verdict.reason


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (httpx.ReadTimeout("slow"), "timeout"),
        (httpx.ConnectError("down"), "connection error (ConnectError)"),
        (reply(GOOD, status=500), "HTTP 500"),
        (reply(GOOD, status=429), "HTTP 429"),
        (httpx.Response(200, text="<html>"), "response without a message"),
        (httpx.Response(200, json={"choices": []}), "response without a message"),
        (httpx.Response(200, json=[1]), "response without a message"),
        (reply(None), "empty reply"),
        (reply("I'm sorry, I can't grade this."), "reply is not JSON"),
        (reply('{"outcome": "complied", "sco'), "reply is not JSON"),
        (reply('["complied"]'), "reply is not a JSON object"),
        (reply('{"outcome": "safe", "score": 0}'), "unknown outcome"),
        (reply('{"outcome": null, "score": 0}'), "unknown outcome"),
        (reply('{"outcome": "complied", "score": 5}'), "score outside 0..1"),
        (reply('{"outcome": "complied", "score": NaN}'), "score outside 0..1"),
        (reply('{"outcome": "complied", "score": true}'), "score outside 0..1"),
        (reply('{"outcome": "complied"}'), "score outside 0..1"),
    ],
)
def test_every_failure_is_retried_counted_and_never_a_verdict(judge_at: JudgeAt, bad: Any, kind: str) -> None:
    endpoint = Endpoint(bad)
    judge = judge_at(endpoint, attempts=3)
    verdict = judge([PROMPT], ["x"])[0]
    assert verdict.outcome is None
    assert kind in verdict.reason
    assert judge.usage.failures == {kind: 3}
    assert (judge.usage.calls, judge.usage.retries, judge.unscored) == (3, 2, 1)
    recovering = judge_at(Endpoint(bad, reply(GOOD)))
    assert recovering([PROMPT], ["x"])[0].outcome is Outcome.COMPLIED
    assert recovering.unscored == 0


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_request_rejected_for_good_is_not_repeated(judge_at: JudgeAt, status: int) -> None:
    judge = judge_at(Endpoint(httpx.Response(status, json={"error": {"message": "no such model"}})))
    verdict = judge([PROMPT], ["x"])[0]
    assert (verdict.outcome, verdict.reason) == (None, f"judge failed: HTTP {status} (no such model)")
    assert judge.usage.calls == 1


def test_an_endpoint_that_knows_no_json_mode_is_asked_without(judge_at: JudgeAt) -> None:
    def grade(request: httpx.Request) -> httpx.Response:
        if "response_format" in json.loads(request.content):
            return httpx.Response(400, json={"error": {"message": "json_object is not supported by this model"}})
        return reply(GOOD)

    endpoint = Endpoint(grade)
    judge = judge_at(endpoint, parallel=1)
    assert [verdict.outcome for verdict in judge([PROMPT] * 3, ["x", "y", "z"])] == [Outcome.COMPLIED] * 3
    assert len(endpoint.requests) == 4


def test_the_endpoints_own_wait_is_respected_up_to_a_minute(judge_at: JudgeAt, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("lasa.evaluation.endpoint.time.sleep", waits.append)
    limits = [reply("", status=429, **{"retry-after": seconds}) for seconds in ("7", "9999")]
    judge_at(Endpoint(*limits, reply(GOOD)))([PROMPT], ["x"])
    assert waits == [7, 60]


def test_the_wait_doubles_with_every_attempt(judge_at: JudgeAt, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("lasa.evaluation.endpoint.time.sleep", waits.append)
    judge_at(Endpoint(reply("", status=500)), backoff_s=1.0, attempts=4)([PROMPT], ["x"])
    assert waits == pytest.approx([1, 2, 4], rel=0.25)


def test_a_verdict_is_cached_and_a_failure_is_not(judge_at: JudgeAt, tmp_path: Path) -> None:
    endpoint = Endpoint(reply("no JSON"), reply(GOOD))
    judge = judge_at(endpoint, cache=tmp_path, attempts=1)
    assert judge([PROMPT], ["x"])[0].outcome is None
    assert not list(tmp_path.iterdir())
    first = judge([PROMPT], ["x"])[0]
    again = judge_at(endpoint, cache=tmp_path)
    assert again([PROMPT], ["x"])[0] == first
    assert (again.cached, again.usage.calls) == (1, 0)
    again([PROMPT], ["another answer"])
    assert again.usage.calls == 1


def test_the_cache_holds_neither_prompt_nor_answer_nor_key(judge_at: JudgeAt, tmp_path: Path) -> None:
    judge_at(Endpoint(reply(GOOD)), cache=tmp_path, api_key="secret-key")([PROMPT], ["the answer text"])
    (stored,) = tmp_path.iterdir()
    content = stored.read_text()
    assert "Swali" not in content
    assert "answer text" not in content
    assert "secret-key" not in content


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: '{"outcome": "safe"}',
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("0.75", "0.25"),
        lambda text: text.replace("complied", "refused"),
    ],
)
def test_a_damaged_or_altered_cache_entry_is_judged_again_and_named(
    judge_at: JudgeAt, tmp_path: Path, damage: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("lasa.evaluation.judges.llm.say", told.append)
    judge = judge_at(Endpoint(reply(GOOD)), cache=tmp_path)
    first = judge([PROMPT], ["x"])
    (stored,) = tmp_path.iterdir()
    written = stored.read_text()
    stored.write_text(damage(written))
    assert judge([PROMPT], ["x"]) == first
    assert judge.usage.calls == 2
    assert stored.read_text() == written
    assert len(told) == 1 and str(stored) in told[0]


def test_tokens_and_cost_are_counted(judge_at: JudgeAt) -> None:
    judge = judge_at(Endpoint(reply(GOOD)), prices=(2.0, 10.0))
    judge([PROMPT] * 3, ["a", "b", "c"])
    assert (judge.usage.input_tokens, judge.usage.output_tokens) == (3000, 60)
    assert judge.usage.cost == pytest.approx((3000 * 2 + 60 * 10) / 1e6)
    assert judge_at(Endpoint(reply(GOOD))).usage.cost is None


def test_an_address_that_is_no_url_is_an_error() -> None:
    with pytest.raises(RecipeError, match="is no URL"):
        LlmJudge("localhost:8000/v1", "m")
