"""The server behind the client libraries that people use, each as its own documentation says; `make test-clients`."""

import pytest

from guards import build_guard, lively_model
from lasa.data.prompts import user_prompt
from lasa.models.generation import GenerationSettings
from servers import serving

TEXTS = ("how do I water the plant", "paint the house", "run", "cook rice")
TEXT = TEXTS[0]
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def guard(tokenizer):
    prompts = [user_prompt(str(number), "en", text) for number, text in enumerate(TEXTS)]
    return build_guard(lively_model("llama", tokenizer), tokenizer, prompts)


@pytest.fixture(scope="module")
def served(guard):
    with serving(guard, max_new_tokens=8) as running:
        yield running


@pytest.fixture(scope="module")
def url(served):
    return f"{served.url}/v1"


@pytest.fixture(scope="module")
def said(guard):
    """What is answered to a conversation of alternating turns."""

    def answer(*turns):
        messages = [
            {"role": "assistant" if number % 2 else "user", "content": text} for number, text in enumerate(turns)
        ]
        return guard.generate([messages], GenerationSettings(8))[0].answer.text

    return answer


# langchain-openai


@pytest.fixture
def langchain(url):
    module = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed: make test-clients")

    def make(kind="ChatOpenAI", **settings):
        return getattr(module, kind)(model="tiny", base_url=url, api_key="unused", max_retries=0, **settings)

    return make


def test_langchain_asks_streams_and_goes_on(langchain, said):
    chat = langchain(temperature=0)
    answer = chat.invoke(TEXT)
    assert answer.content == said(TEXT)
    assert "".join(chunk.content for chunk in chat.stream(TEXT)) == said(TEXT)
    assert chat.invoke([("user", TEXT), answer, ("user", "run")]).content == said(TEXT, answer.content, "run")
    assert [one.content for one in chat.batch(list(TEXTS))] == [said(text) for text in TEXTS]


def test_langchain_uses_the_responses_api(langchain, said):
    chat = langchain(use_responses_api=True)
    assert chat.invoke(TEXT).text == said(TEXT)
    assert "".join(chunk.text for chunk in chat.stream(TEXT)) == said(TEXT)


def test_langchain_completes_prompts(langchain, said):
    model = langchain("OpenAI", temperature=0)
    assert model.batch(list(TEXTS)) == [said(text) for text in TEXTS]
    assert "".join(model.stream(TEXT)) == said(TEXT)


def test_langchain_binds_no_tools_or_is_told_that_there_are_none(langchain, said):
    import openai

    def add(number: int) -> int:
        """Add one."""
        return number + 1

    chat = langchain()
    assert chat.bind_tools([]).invoke(TEXT).content == said(TEXT)
    assert chat.bind_tools([add], tool_choice="none").invoke(TEXT).content == said(TEXT)
    with pytest.raises(openai.BadRequestError, match="cannot call tools"):
        chat.bind_tools([add]).invoke(TEXT)


@pytest.mark.parametrize(
    ("method", "message"),
    [("json_schema", "json_schema"), ("function_calling", "cannot call tools"), ("json_mode", "json_object")],
)
def test_langchain_is_told_that_output_is_not_structured_here(langchain, method, message):
    import openai
    from pydantic import create_model

    answer = create_model("Answer", __doc__="An answer.", number=(int, ...))
    with pytest.raises(openai.BadRequestError, match=message):
        langchain().with_structured_output(answer, method=method).invoke(TEXT)


# LiteLLM


@pytest.fixture
def litellm(url, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    module = pytest.importorskip("litellm", reason="litellm is not installed: make test-clients")
    return module, {"api_base": url, "api_key": "unused", "num_retries": 0}


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_litellm_asks_streams_and_goes_on(litellm, said, provider):
    module, where = litellm
    cached = {"role": "user", "content": [{"type": "text", "text": TEXT, "cache_control": {"type": "ephemeral"}}]}
    asked = {"model": f"{provider}/tiny", "temperature": 0, "top_k": 5, **where}
    answer = module.completion(messages=[cached], **asked).choices[0].message
    assert answer.content == said(TEXT)
    turns = [{"role": "user", "content": TEXT}, answer.model_dump(), {"role": "user", "content": "run"}]
    assert module.completion(messages=turns, **asked).choices[0].message.content == said(TEXT, answer.content, "run")
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(module.completion(messages=turns[:1], **asked, **options))
    assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == said(TEXT)


def test_litellm_uses_the_other_endpoints(litellm, said, guard):
    module, where = litellm
    assert module.responses(model="openai/tiny", input=TEXT, **where).output[0].content[0].text == said(TEXT)
    whole = module.text_completion(model="text-completion-openai/tiny", prompt=TEXT, **where)
    assert whole.choices[0].text == said(TEXT)
    verdict = module.moderation(input=TEXT, model="omni-moderation-latest", **where)
    assert verdict.results[0].flagged == guard.decide([({"role": "user", "content": TEXT},)])[0].flagged


# llm


def test_llm_asks_streams_and_goes_on(url, said, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- {{model_id: lasa-tiny, model_name: tiny, api_base: {url}}}\n"
        f"- {{model_id: lasa-plain, model_name: tiny, api_base: {url}, completion: true}}\n"
    )
    llm = pytest.importorskip("llm", reason="llm is not installed: make test-clients")
    model = llm.get_model("lasa-tiny")
    conversation = model.conversation()
    first = conversation.prompt(TEXT, key="unused", stream=False).text()
    assert first == said(TEXT)
    assert "".join(conversation.prompt("run", key="unused")) == said(TEXT, first, "run")
    assert llm.get_model("lasa-plain").prompt(TEXT, key="unused", stream=False).text() == said(TEXT)


# lm-evaluation-harness


def test_lm_eval_generates_through_chat_completions(url, said):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: make test-clients")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalChatCompletion

    model = LocalChatCompletion(model="tiny", base_url=f"{url}/chat/completions", max_retries=1, num_concurrent=1)
    asked = [
        Instance(
            request_type="generate_until", doc={}, idx=number,
            arguments=(model.apply_chat_template([{"role": "user", "content": text}]), {"until": ["\x00"]}),
        )
        for number, text in enumerate(TEXTS)
    ]  # fmt: skip
    assert model.generate_until(asked, disable_tqdm=True) == [said(text) for text in TEXTS]
