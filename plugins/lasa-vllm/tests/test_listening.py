"""Answers that are read again: the same are stopped, at the same token, as by lasa's own guard; nothing shows more."""

import random
from types import SimpleNamespace

import pytest
import torch
from engines import Case, ask, engine, expect, save
from lasa_vllm import scheduler
from lasa_vllm.listening import AnswerStops, Listening, answer_limit
from lasa_vllm.models import is_named
from lasa_vllm.settings import Settings, answered_kinds
from test_processors import CONDITION, END, SLOTS, VOCABULARY, Request, V1Runner, V2Runner, simulated
from test_scheduler import Plain
from vllm import SamplingParams
from vllm.v1.request import Request as EngineRequest

from guards import build_interpreter
from lasa.conditioning.decision import Policy
from lasa.data.prompts import user_prompt
from lasa.errors import GuardError
from lasa.guard.guard import Guard
from lasa.guard.listening import AnswerListener
from lasa.interpreter.heads import AnswerHead
from lasa.interpreter.probe import load_interpreter
from lasa.models.answer_states import read_answer_states
from lasa.models.generation import GenerationSettings

MARK, WINDOW, LONGEST = 2, 3, 40
HEAD = AnswerHead(WINDOW, 0.7)
LISTENING = Listening(HEAD, MARK)
ENGINE = SimpleNamespace(
    scheduler_config=SimpleNamespace(max_num_seqs=SLOTS), model_config=SimpleNamespace(max_model_len=LONGEST)
)


def stopped_after(logits, *, ended):
    """After how many tokens lasa's own listener stops an answer, None if it does not."""
    listener = AnswerListener(HEAD)
    for number, logit in enumerate(logits, start=1):
        listener.hear(logit)
        if not listener.score(ended=ended and number == len(logits)) < HEAD.threshold:
            return number
    return None


class Spoken(Request):
    """A request of the simulation whose answer ends by itself, or at its limit, and is heard token by token."""

    def __init__(self, number, draw):
        super().__init__(number, draw)
        self.heard = [draw.choice([-3.0, 0.5, 3.0]) for _ in range(draw.randint(0, 9))]
        self.limit = draw.choice([1, 2, 3, 5, 12])
        self.prompt = self.prompt[-6:]
        self.params = SamplingParams(max_tokens=self.limit, extra_args=self.params.extra_args)
        self.params._eos_token_id = END

    @property
    def conditioned(self):
        return (self.flagged or not self.readable) and not self.off

    @property
    def own(self):
        written = len(self.written)
        if self.written[:1] == [5]:
            return 8 + written
        return 11 + written % 8 if written < len(self.heard) else END

    @property
    def expected(self):
        if self.conditioned:
            return [*CONDITION, 11, 12]
        whole = [11 + number % 8 for number in range(len(self.heard))]
        heard = self.heard[: self.limit]
        stop = None if self.off else stopped_after(heard, ended=True)
        if stop is not None:
            return [*whole[:stop], MARK]
        return [*whole, END][: self.limit]  # more than its limit is not asked for here

    @property
    def logit(self):
        """At its newest token."""
        return self.heard[len(self.written) - 1] if self.written and not self.conditioned else 9.0


@pytest.mark.parametrize("preempted", [0.0, 0.1])
@pytest.mark.parametrize("runner", [V1Runner, V2Runner])
@pytest.mark.parametrize("seed", range(20))
def test_the_same_answers_are_stopped_as_by_lasa_s_own_listener(monkeypatch, runner, seed, preempted):
    decisions, draw = simulated(monkeypatch, LISTENING), random.Random(seed)
    engine = runner(ENGINE, draw)
    waiting, running, finished, came_back = [Spoken(number, draw) for number in range(40)], [], [], set()
    while waiting or running:
        while waiting and len(running) < SLOTS:
            running.append(waiting.pop(0))
        batch = engine.arrange(draw.sample(running, draw.randint(1, len(running))))
        for one in batch:
            one.read = min(len(one.prompt + one.written), one.read + draw.randint(1, 4))
        at_end = [one.read == len(one.prompt) for one in batch]
        scores = [float(one.flagged) if end else draw.random() for one, end in zip(batch, at_end, strict=True)]
        newest = [one.read == len(one.prompt + one.written) for one in batch]
        heard = [one.logit if new else draw.choice([-9.0, 9.0]) for one, new in zip(batch, newest, strict=True)]
        decisions.put(torch.tensor(scores), 0.5, None, torch.tensor(heard))
        logits = torch.full((len(batch), VOCABULARY), -50.0)
        logits[:, MARK] = -1.0  # the model would like to write it
        for row, one in enumerate(batch):
            logits[row, one.own] = 0.0
        tokens = engine.apply(batch, logits).argmax(dim=-1).tolist()
        for one, token, new in zip(batch, tokens, newest, strict=True):
            if new:
                one.written.append(token)
        for one in [one for one in batch if len(one.written) == len(one.expected) or one.written[-1:] == [MARK]]:
            running.remove(one)
            engine.leave(one)
            finished.append(one)
        if running and draw.random() < preempted:  # it comes back with what it has written
            one = draw.choice(running)
            came_back.add(one.number)
            engine.leave(one)
            one.read = 0
    stayed = [one for one in finished if one.number not in came_back]
    assert [one.written for one in stayed] == [one.expected for one in stayed]
    stops = [one for one in finished if one.written[-1] == MARK]
    assert stops and len(stops) < len(finished)
    for one in finished:  # one that came back may be stopped by fewer tokens, and never later
        assert MARK not in one.written[:-1]
        assert len(one.written) <= len(one.expected) + (one.number in came_back)
        if one.expected[-1] == MARK:
            assert one.written[-1] == MARK


def test_a_score_that_is_missing_or_no_number_stops_every_answer(monkeypatch):
    for missing in (True, False):
        decisions, draw = simulated(monkeypatch, LISTENING), random.Random(0)
        for runner in (V1Runner, V2Runner):
            engine, one = runner(ENGINE, draw), Spoken(0, draw)
            one.flagged, one.off, one.readable, one.prompt = False, False, True, [1, 3, 4]
            one.heard, one.params = [-3.0] * 9, SamplingParams(max_tokens=12)
            for step in range(WINDOW + 1):
                engine.arrange([one])
                one.read = len(one.prompt + one.written)
                if step == 0 or not missing:
                    decisions.put(torch.tensor([0.0]), 0.5, None, torch.tensor([torch.nan]))
                logits = torch.full((1, VOCABULARY), -50.0)
                logits[0, one.own] = 0.0
                one.written.append(int(engine.apply([one], logits).argmax(dim=-1)))
            assert one.written == [11, 12, 13, MARK]


def test_an_answer_may_not_end_otherwise_than_its_request_lets_it():
    stops = AnswerStops(LISTENING, 2, torch.device("cpu"))
    params = SamplingParams(stop_token_ids=[12, 14])
    params._eos_token_id = END
    stops.enter(0, SamplingParams())
    stops.enter(1, params)
    logits = torch.zeros(2, VOCABULARY)
    logits[1, 14] = 4.0
    stops.mark_ends(logits, torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([True, True]))
    assert logits[1, MARK] == 4.0
    assert logits[1, [END, 12, 14]].isneginf().all()
    assert logits[0].isfinite().sum() == VOCABULARY - 1  # one that has no end goes on


class Read(scheduler._AnswersRead, Plain):
    """The scheduler's part, over as much of vLLM's as handles new tokens."""

    structured_output_manager = SimpleNamespace(accept_tokens=lambda request, tokens: True)


@pytest.fixture
def stream(monkeypatch):
    """What the caller has after each token that is written, and how the answer ends."""

    def stream(written, limit, *, prompt=(1, 2), eos=END, **asked):
        facts = SimpleNamespace(condition=CONDITION, listening=LISTENING)
        monkeypatch.setattr(scheduler, "prompting", lambda config: facts)
        monkeypatch.setattr(scheduler, "read_settings", lambda c: SimpleNamespace(hide_condition=True, opt_out=True))
        params = SamplingParams(max_tokens=limit, **asked)
        params._eos_token_id = eos
        request = EngineRequest("one", list(prompt), params, None)
        tested = Read(vllm_config=None)
        tested.add_request(request)
        got, shown = [], []
        for token in written:
            new, stopped = tested._update_request_with_output(request, [token])
            got += new
            shown.append(list(got))
            if stopped:
                return shown, str(request.get_finished_reason()), request.stop_reason
        return shown, None, None

    return stream


def test_nothing_is_shown_before_every_window_that_it_is_in_was_read(stream):
    own = list(range(11, 18))
    shown, reason, _ = stream([*own, END], 9)
    assert shown == [[], [], [], *(own[:n] for n in range(1, 5)), [*own, END]]
    assert reason == "stop"


def test_what_is_stopped_shows_no_more(stream):
    shown, reason, why = stream([11, 12, 13, 14, 15, MARK, 16], 9)
    assert shown == [[], [], [], [11], [11, 12], [11, 12]]
    assert (reason, why) == ("stop", "content_filter")
    assert stream([MARK], 9) == ([[]], "stop", "content_filter")
    assert stream([5, MARK], 1) == ([[], []], "stop", "content_filter")


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_an_answer_ends_at_its_limit_once_its_last_token_was_read(stream, limit):
    shown, reason, _ = stream(range(11, 20), limit)
    assert (shown[-1], reason) == (list(range(11, 11 + limit)), "length")
    assert len(shown) == limit + 1


def test_the_last_token_of_the_model_s_context_is_not_shown_as_it_was_not_read(stream):
    shown, reason, _ = stream(range(3, 40), 100, prompt=range(1, 11), eos=99)
    assert (shown[-1], reason) == (list(range(3, 12)), "length")
    assert answer_limit(100, 10, Plain.max_model_len) == 9


def test_a_conditioned_answer_is_left_alone(stream):
    shown, reason, _ = stream([*CONDITION, 11, 12, 13], 2)
    assert (shown, reason) == ([[], [], [], [11], [11, 12]], "length")


def test_a_request_that_is_not_guarded_is_not_held_back(stream):
    assert stream([11, 12], 2, extra_args={"lasa": "off"})[0][-1] == [11, 12]


def test_a_grammar_takes_tokens_when_they_are_written(stream, monkeypatch):
    """Where vLLM asks it once more, when they are let go, it has them already."""
    taken = []

    class Manager:
        def accept_tokens(self, request, tokens):
            taken.extend(tokens)
            return tokens != [15]

    taking, update = Manager(), Read._update_request_with_output

    def as_vllm_does(self, request, new_token_ids, **rest):
        new, stopped = update(self, request, new_token_ids, **rest)
        assert not new or taking.accept_tokens(request, new)
        return new, stopped

    monkeypatch.setattr(Read, "structured_output_manager", taking)
    monkeypatch.setattr(Read, "_follow_grammar", lambda self, request, new_token_ids: None)
    monkeypatch.setattr(Read, "_update_request_with_output", as_vllm_does)
    monkeypatch.setattr(EngineRequest, "use_structured_output", property(lambda self: True))
    assert stream([11, 12, 13, 14, END], 9)[0][-1] == [11, 12, 13, 14, END]
    assert taken == [11, 12, 13, 14, END]
    assert stream([11, 15], 9)[1] == "error"


def test_kinds_that_are_to_be_answered(tiny):
    case = tiny("llama")
    prompts = [user_prompt(str(n), "en", c[0]["content"]) for n, c in enumerate(case.conversations)]
    model, tokenizer = case.guard.model, case.guard.tokenizer
    probe = build_interpreter(model, tokenizer, prompts, flagged=1, kinds=("privacy", "hate"))
    states = torch.randn(50, probe.config.width)
    named = probe.category_probabilities(states).argmax(-1)
    for number, kind in enumerate(("privacy", "hate")):
        assert answered_kinds(Settings("folder", answered=(kind,)), probe.config) == [number]
        assert is_named(probe, states, [number]).tolist() == (named == number).tolist()
    object.__setattr__(probe.config.categories, "threshold", 1.0)
    assert not is_named(probe, states, [0, 1]).any()
    assert not is_named(probe, states * torch.nan, [0, 1]).any()
    with pytest.raises(GuardError, match="tells apart privacy, hate"):
        answered_kinds(Settings("folder", answered=("weapons",)), probe.config)
    assert not is_named(case.guard.interpreter, states, [0]).any()


def test_what_is_spared_is_not_conditioned_and_not_stopped(monkeypatch):
    for runner in (V1Runner, V2Runner):
        decisions, draw = simulated(monkeypatch, LISTENING), random.Random(0)
        engine, one = runner(ENGINE, draw), Spoken(0, draw)
        one.prompt, one.heard, one.written = [1, 3, 4], [3.0] * 5, []
        one.params = SamplingParams(max_tokens=12)
        for _ in range(6):
            engine.arrange([one])
            one.read = len(one.prompt + one.written)
            decisions.put(torch.tensor([1.0]), 0.5, torch.tensor([True]), torch.tensor([9.0]))
            logits = torch.full((1, VOCABULARY), -50.0)
            logits[0, one.own] = 0.0
            one.written.append(int(engine.apply([one], logits).argmax(dim=-1)))
        assert one.written == [11, 12, 13, 14, 15, END]


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


def test_a_kind_that_the_interpreter_does_not_know_does_not_start(tiny):
    with pytest.raises(Exception, match="does not know"), engine(tiny("llama"), lasa={"answered": ["weapons"]}):
        pass
