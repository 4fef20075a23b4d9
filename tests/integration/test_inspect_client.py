"""An Inspect task talks to the server through Inspect's own provider for OpenAI-compatible endpoints."""

import pytest

from guards import build_guard, lively_model
from lasa.models.generation import GenerationSettings
from servers import serving

inspect_ai = pytest.importorskip("inspect_ai", reason="inspect-ai is not installed: make test-inspect")


@pytest.mark.filterwarnings("ignore")
def test_an_inspect_task_gets_the_guards_answers(tokenizer, prompts, tmp_path):
    from inspect_ai.dataset import Sample
    from inspect_ai.model import get_model
    from inspect_ai.scorer import match
    from inspect_ai.solver import generate

    guard = build_guard(lively_model("llama", tokenizer), tokenizer, prompts)
    answers = guard.generate([p.messages for p in prompts], GenerationSettings(max_new_tokens=10))
    samples = [Sample(input=p.text, target=one.answer.text) for p, one in zip(prompts, answers, strict=True)]
    with serving(guard, max_new_tokens=10) as served:
        model = get_model("openai-api/lasa/tiny", base_url=f"{served.url}/v1", api_key="unused")
        task = inspect_ai.Task(dataset=samples, solver=generate(), scorer=match())
        (log,) = inspect_ai.eval(task, model=model, display="none", log_dir=str(tmp_path))
    assert log.status == "success", log.error
    assert [sample.output.completion for sample in log.samples] == [one.answer.text for one in answers]
