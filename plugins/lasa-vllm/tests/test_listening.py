"""Answers that are read again: the engine stops the same, at the same token, as lasa's own guard."""

import pytest
import torch
from engines import Case, ask, engine, expect, save
from vllm import SamplingParams

from lasa.conditioning.decision import Policy
from lasa.data.prompts import user_prompt
from lasa.guard.guard import Guard
from lasa.interpreter.heads import AnswerHead
from lasa.interpreter.probe import load_interpreter
from lasa.models.answer_states import read_answer_states
from lasa.models.generation import GenerationSettings

LENGTH = 16


def with_answers(case, folder) -> Case:
    """The same with a random head for answers that stops about half of those that are not conditioned."""
    torch.manual_seed(1)
    plain = load_interpreter(case.interpreter)
    object.__setattr__(plain.config, "answers", AnswerHead(4))
    plain.answers = torch.nn.Linear(plain.config.width, 1)
    answered = case.guard.generate(case.conversations, GenerationSettings(LENGTH))
    own = [
        (user_prompt(str(n), "en", c[-1]["content"]), one.answer.text)
        for n, (c, one) in enumerate(zip(case.conversations, answered, strict=True))
        if len(c) == 1 and one.answer.text.strip() and not one.decision.flagged
    ]
    prompts, texts = zip(*own, strict=True)
    layer, window = plain.config.read_point.layer, plain.config.answers.window
    states = read_answer_states(case.guard.model, case.guard.tokenizer, prompts, texts, layer)
    read = [plain.answer_logits(one) for one in states]
    highest = sorted(float(one.unfold(0, min(window, len(one)), 1).mean(-1).sigmoid().max()) for one in read)
    middle = len(highest) // 2
    object.__setattr__(plain.config.answers, "threshold", (highest[middle] + highest[middle - 1]) / 2)
    policy = Policy(condition=case.guard.policy.condition, reread_every=1)
    again = save(case.guard.model, case.guard.tokenizer, plain, policy.condition, [], folder)
    guard = Guard(case.guard.model, case.guard.tokenizer, plain, policy)
    return Case(guard, case.model, again.interpreter, case.conversations)


@pytest.fixture(scope="module")
def listening(embedded, tmp_path_factory):
    return with_answers(embedded, tmp_path_factory.mktemp("listening"))


def shown(case):
    """What vLLM is to show of each answer, and whether it is stopped."""
    expected = []
    for one in case.guard.generate(case.conversations, GenerationSettings(LENGTH)):
        if one.stopped is None:
            expected.append((one.answer.text, False))
        else:
            expected.append((int(one.stopped.reason.split()[1]), True))
    return expected


@pytest.mark.parametrize("arguments", [{}, {"max_num_batched_tokens": 64, "max_num_seqs": 16}], ids=["whole", "chunks"])
def test_the_engine_stops_what_the_transformers_guard_stops_at_the_same_token(listening, arguments):
    expected = shown(listening)
    assert sum(stopped for _, stopped in expected) > 5
    assert sum(not stopped for _, stopped in expected) > 20
    params = SamplingParams(temperature=0.0, max_tokens=LENGTH)
    with engine(listening, lasa={"read_answers": True}, **arguments) as llm:
        outputs = [one.outputs[0] for one in llm.chat(listening.conversations, params, use_tqdm=False)]
    for output, (said, stopped) in zip(outputs, expected, strict=True):
        if stopped:
            assert (output.finish_reason, output.stop_reason) == ("stop", "content_filter")
            assert len(output.token_ids) == max(0, said - listening.guard.interpreter.config.answers.window)
        else:
            assert output.text == said


def test_without_reading_answers_nothing_changes(listening, embedded):
    with engine(listening) as llm:
        assert ask(llm, listening.conversations, LENGTH) == expect(embedded, limit=LENGTH)[0]


def test_an_interpreter_without_such_a_head_does_not_start(tiny):
    with pytest.raises(Exception, match="head for answers"), engine(tiny("llama"), lasa={"read_answers": True}):
        pass
