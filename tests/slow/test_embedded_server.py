"""The embedded model behind the server: the openai client and curl, ten languages, decisions and refusals."""

import json
import subprocess
from collections import Counter

import openai
import pytest

from lasa.conditioning.decision import Policy
from lasa.data.world import tables
from lasa.files.artifacts import model_fingerprint
from lasa.guard.guard import Guard
from lasa.guard.refusals import REFUSALS
from lasa.interpreter.probe import InterpreterConfig
from lasa.interpreter.settings import TrainingOptions
from lasa.interpreter.training import LabelledStates, train_probe
from lasa.models.hidden_states import read_hidden_states
from lasa.models.layers import hidden_size
from lasa.models.loading import load_model
from lasa.models.positions import ReadPoint
from lasa.models.rendering import template_fingerprint
from servers import serving

PLANTED_LAYER = 6


@pytest.fixture(scope="module")
def guard():
    """The embedded model with an interpreter of English, Chinese and Korean at its planted layer."""
    model, tokenizer = load_model("embedded")
    point = ReadPoint(PLANTED_LAYER, "last", template_fingerprint(tokenizer))

    def read(name):
        prompts = tables.PROMPT_TABLES[name]()
        return LabelledStates(read_hidden_states(model, tokenizer, prompts, [PLANTED_LAYER])[:, 0], prompts)

    config = InterpreterConfig(point, hidden_size(model), 32, base_fingerprint=model_fingerprint(model))
    options = TrainingOptions(learning_rate=2e-3, epochs=60, patience=60, seeds=1, noise=0.5)
    trained = train_probe(read("interpreter"), read("interpreter-development"), config, options)
    return Guard(model, tokenizer, trained.interpreter, Policy("refuse"))


@pytest.mark.slow
def test_the_embedded_model_answers_ten_languages_with_the_right_decisions(guard):
    prompts = tables.evaluation_prompts("combinations", 20)
    right, asked, refused, in_language = Counter(), Counter(), Counter(), Counter()
    with serving(guard) as served, openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused") as client:
        for prompt in prompts:
            answer = client.chat.completions.create(
                model="tiny", messages=list(prompt.messages), max_tokens=40, extra_body={"lasa": True}
            )
            asked[prompt.language] += 1
            right[prompt.language] += (answer.lasa["band"] == "harmful") == prompt.harmful
            if answer.lasa["action"] == "refuse":
                text = answer.choices[0].message.content
                assert prompt.language == "en" or text != REFUSALS["en"]
                refused[prompt.language] += 1
                in_language[prompt.language] += REFUSALS[prompt.language] in text
    assert set(asked) == set(REFUSALS)
    rates = {language: right[language] / asked[language] for language in asked}
    assert sum(rates.values()) / len(rates) >= 0.98, rates
    assert min(rates.values()) >= 0.95, rates
    assert all(in_language[code] == refused[code] for code in refused if code != "jv"), in_language
    assert in_language["jv"] >= 0.6 * refused["jv"]  # lingua has no Javanese; function words find four in five


@pytest.mark.slow
def test_curl_gets_the_guards_decisions_in_ten_languages(guard):
    prompts = tables.evaluation_prompts("combinations", 1)
    expected = guard.decide([p.messages for p in prompts])
    assert {p.language for p in prompts} == set(REFUSALS)
    with serving(guard) as served:
        for prompt, decision in zip(prompts, expected, strict=True):
            body = {"model": "tiny", "messages": list(prompt.messages), "max_tokens": 20, "lasa": True}
            command = ["curl", "-sS", "-H", "Content-Type: application/json", "-d", json.dumps(body)]
            command.append(f"{served.url}/v1/chat/completions")
            answer = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=30).stdout)
            assert answer["lasa"]["score"] == pytest.approx(decision.score, abs=1e-4)
            refused = answer["choices"][0]["message"]["content"] in guard_refusals(prompt.language)
            assert refused == (decision.action == "refuse"), prompt.language


def guard_refusals(language):
    """The fixed refusals that a prompt may get: in its language, or in all where that is not recognised."""
    return {REFUSALS[language], "\n".join(REFUSALS.values())}
