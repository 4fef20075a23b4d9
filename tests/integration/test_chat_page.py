"""The chat page in a real browser: score, decision and answer in any language, and nothing run from an answer."""

import os
import re
from pathlib import Path

import httpx
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from browser import complaints, show
from guards import build_guard, lively_model
from lasa.conditioning.decision import Policy
from lasa.data.prompts import user_prompt
from lasa.guard.refusals import REFUSALS
from lasa.serving.chat import chat_chunks
from servers import serving, slow_down

TEXTS = ("water the plant", "paint the house", "run", "cook rice")


@pytest.fixture(scope="module")
def lively(tokenizer):
    return lively_model("llama", tokenizer)


def guard_for(lively, tokenizer, **settings):
    prompts = [user_prompt(str(number), "en", text) for number, text in enumerate(TEXTS)]
    return build_guard(lively, tokenizer, prompts, **settings)


def say(page, text):
    """Send a message and wait for the end of its answer."""
    before = page.find_elements(By.CSS_SELECTOR, ".turn.assistant[data-done]")
    page.execute_script("document.getElementById('input').value = arguments[0]", text)
    page.find_element(By.ID, "send").click()
    return wait_for(page, ".turn.assistant[data-done]", before)


def wait_for(page, selector, before=()):
    found = WebDriverWait(page, 20).until(
        lambda p: len(now := p.find_elements(By.CSS_SELECTOR, selector)) > len(before) and now
    )
    return found[-1]


def picture(page, name):
    """Keep a screenshot where one was asked for."""
    if folder := os.environ.get("LASA_SCREENSHOTS"):
        page.save_screenshot(str(Path(folder) / name))


def test_a_person_sees_score_decision_and_answer(chromium, lively, tokenizer):
    guard = guard_for(lively, tokenizer, flagged=1, policy=Policy("refuse"))
    with serving(guard) as served:
        chromium.get(served.url)
        for language, text in (("zh", "如何给植物浇水"), ("th", "วิธีรดน้ำต้นไม้"), ("ko", "식물에 물을 주는 방법")):
            answer = say(chromium, text)
            assert answer.find_element(By.CSS_SELECTOR, ".text").text == REFUSALS[language]
            decision = answer.find_element(By.CSS_SELECTOR, ".decision")
            assert "harmful, refuse" in decision.text
            assert "is at or above the threshold" in decision.text
        picture(chromium, "chat-refused.png")
        assert len(chromium.find_elements(By.CSS_SELECTOR, ".turn")) == 6
        assert complaints(chromium) == []


def test_the_answer_is_the_servers_and_the_conversation_goes_on(chromium, lively, tokenizer):
    with serving(guard_for(lively, tokenizer), max_new_tokens=20) as served:
        chromium.get(served.url)
        first = say(chromium, "paint the house")
        messages = [{"role": "user", "content": "paint the house"}]
        asked = {"model": "tiny", "messages": messages, "lasa": True}
        whole = httpx.post(f"{served.url}/v1/chat/completions", json=asked).json()
        shown = chromium.execute_script("return messages[1].content")
        assert shown == whole["choices"][0]["message"]["content"]
        assert whole["lasa"]["reason"] in first.find_element(By.CSS_SELECTOR, ".decision").text
        say(chromium, "go on")
        assert chromium.execute_script("return messages.length") == 4
        picture(chromium, "chat-answered.png")
        chromium.find_element(By.ID, "reset").click()
        assert chromium.find_elements(By.CSS_SELECTOR, ".turn") == []


def test_markup_in_question_and_answer_is_shown_and_not_run(chromium, lively, tokenizer, monkeypatch):
    attack = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    monkeypatch.setattr("lasa.guard.model.fixed_message", lambda *_: attack)
    monkeypatch.setattr("lasa.guard.guard.Guard.language", lambda *_: "en")
    guard = guard_for(lively, tokenizer, flagged=1, policy=Policy("refuse"))
    with serving(guard, model_name='"><script>document.title="owned"</script>') as served:
        chromium.get(served.url)
        answer = say(chromium, attack)
        assert answer.find_element(By.CSS_SELECTOR, ".text").text == attack
        assert chromium.find_elements(By.CSS_SELECTOR, ".turn.user .text")[0].text == attack
        assert chromium.find_elements(By.CSS_SELECTOR, "img, main script") == []
        assert chromium.title == "lasa chat"


def test_the_page_fits_every_screen_in_light_and_dark(chromium, lively, tokenizer):
    with serving(guard_for(lively, tokenizer), max_new_tokens=20) as served:
        chromium.get(served.url)
        say(chromium, "how do I water the plant " * 12)
        papers = {}
        for theme in ("light", "dark"):
            for width in (320, 390, 768, 1280):
                show(chromium, width, theme)
                assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
                picture(chromium, f"chat-{width}-{theme}.png")
            ink = chromium.execute_script("return getComputedStyle(document.body).color")
            papers[theme] = [int(part) for part in re.findall(r"\d+", ink)[:3]]
        assert max(papers["light"]) < 80 < 170 < min(papers["dark"])


def test_an_answer_can_be_stopped_and_an_error_is_said(chromium, lively, tokenizer, monkeypatch):
    slow_down(monkeypatch, 0.05)
    with serving(guard_for(lively, tokenizer), api_key="secret") as served:
        chromium.get(served.url)
        refused = say(chromium, "run")
        assert "API key is needed" in refused.find_element(By.CSS_SELECTOR, ".error").text
        chromium.execute_script("document.getElementById('key').value = 'secret'")
        chromium.execute_script("document.getElementById('input').value = 'run'")
        chromium.find_element(By.ID, "send").click()
        wait_for(chromium, ".turn .decision")
        chromium.find_element(By.ID, "send").click()
        wait_for(chromium, ".turn .error", [refused])
        served.wait_for(lambda: served.scheduler.load == (0, 0))


def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(chromium, lively, tokenizer, monkeypatch):
    async def first_only(answering, include_usage):
        async for chunk in chat_chunks(answering, include_usage):
            yield chunk
            return

    monkeypatch.setattr("lasa.serving.app.chat_chunks", first_only)
    with serving(guard_for(lively, tokenizer)) as served:
        chromium.get(served.url)
        broken = say(chromium, "run")
        assert broken.find_element(By.CSS_SELECTOR, ".error").text == "The answer broke off."
        assert chromium.execute_script("return messages.length") == 0


def test_the_page_loads_nothing_from_anywhere_else(lively, tokenizer):
    with serving(guard_for(lively, tokenizer)) as served:
        answer = httpx.get(served.url)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http://" not in answer.text
    assert "https://" not in answer.text
