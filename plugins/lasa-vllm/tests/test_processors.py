"""Both logits processors against a simulated model runner: rows that enter, move, pause, come back, in chunks.

The V1 processor also runs in real engines (test_equality.py); of the V2 one this is all that can be run on a CPU.
"""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lasa_vllm import processor_v1, processor_v2
from lasa_vllm.decisions import Decisions
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext

CONDITION, TAIL, END, VOCABULARY, SLOTS = [5, 6, 7], [3, 4], 9, 20, 8


class Request:
    """A request of the simulation; its own answer is 11, 12, 13, ...; a score of 1 flags it."""

    def __init__(self, number, draw):
        self.flagged = draw.random() < 0.5
        self.readable = draw.random() < 0.8
        self.off = draw.random() < 0.2
        self.prompt = [1] * draw.randint(1, 5) + (TAIL if self.readable else [8])
        self.written, self.number = [], number
        self.read = 0  # tokens computed so far
        self.params = SamplingParams(extra_args={"lasa": "off"} if self.off else None)

    @property
    def own(self):
        return 11 + len(self.written) if not self.written or self.written[0] != 5 else 8 + len(self.written)

    @property
    def expected(self):
        conditioned = (self.flagged or not self.readable) and not self.off
        return [*(CONDITION if conditioned else []), 11, 12, 13, 14]


class V1Runner:
    """Rows change places as in vLLM's persistent batch: new ones fill gaps, the last ones move up, two are swapped."""

    def __init__(self, config, draw):
        self.processor = processor_v1.ConditionProcessor(config, torch.device("cpu"), False)
        self.rows, self.draw = [], draw

    def arrange(self, batch):
        gaps = [index for index, one in enumerate(self.rows) if one not in batch]
        rows = [one if one in batch else None for one in self.rows]
        added, moved = [], []
        for one in [one for one in batch if one not in rows]:
            index = gaps.pop(0) if gaps else len(rows)
            rows[index : index + 1] = [one]
            added.append((index, one.params, one.prompt, one.written))
        for gap in gaps:
            while rows and rows[-1] is None:
                rows.pop()
            if gap < len(rows):
                moved.append((len(rows) - 1, gap, MoveDirectionality.UNIDIRECTIONAL))
                rows[gap] = rows.pop()
        if len(rows) > 1 and self.draw.random() < 0.3:
            a, b = self.draw.sample(range(len(rows)), 2)
            rows[a], rows[b] = rows[b], rows[a]
            moved.append((a, b, MoveDirectionality.SWAP))
        update = BatchUpdate(len(rows), gaps, added, moved)
        self.processor.update_state(update if gaps or added or moved else None)
        self.rows = rows
        return rows

    def apply(self, batch, logits):
        return self.processor.apply(logits)

    def leave(self, request):
        self.rows = [None if one is request else one for one in self.rows]


class V2Runner:
    """Requests keep a slot while they run; what was written lies on the device."""

    def __init__(self, config, draw):
        self.slots, self.free = {}, list(range(SLOTS))
        self.lengths = np.zeros(SLOTS, dtype=np.int32)
        self.tokens = torch.zeros(SLOTS, 40, dtype=torch.int32)
        self.prompt_len = SimpleNamespace(np=self.lengths, gpu=torch.from_numpy(self.lengths))
        states = SimpleNamespace(
            device=torch.device("cpu"),
            max_num_reqs=SLOTS,
            all_token_ids=SimpleNamespace(gpu=self.tokens),
            prompt_len=self.prompt_len,
        )
        self.processor = processor_v2.ConditionProcessor(config, states)

    def arrange(self, batch):
        for one in batch:
            if one not in self.slots:
                self.slots[one] = self.free.pop(0)
                self.lengths[self.slots[one]] = len(one.prompt)
                self.processor.add_request(self.slots[one], one.params)
            known = one.prompt + one.written
            self.tokens[self.slots[one], : len(known)] = torch.tensor(known, dtype=torch.int32)
        return batch

    def apply(self, batch, logits):
        slots = np.array([self.slots[one] for one in batch])
        seen = np.array([one.read for one in batch], dtype=np.int32)
        mapping = torch.from_numpy(slots).int()
        context = LogitsContext(mapping, mapping, slots, torch.zeros_like(mapping), mapping, mapping, seen)
        return self.processor.apply(logits, context)

    def leave(self, request):
        if request in self.slots:
            self.free.append(self.slots.pop(request))


@pytest.fixture
def decisions(monkeypatch):
    return simulated(monkeypatch)


def simulated(monkeypatch, listening=None):
    """What the processors get from the engine."""
    decisions, facts = Decisions(), SimpleNamespace(condition=CONDITION, tail=TAIL, end=END, listening=listening)
    for module in (processor_v1, processor_v2):
        monkeypatch.setattr(module, "check_engine", lambda config: None)
        monkeypatch.setattr(module, "prompting", lambda config: facts)
        monkeypatch.setattr(module, "read_settings", lambda config: SimpleNamespace(opt_out=True))
        monkeypatch.setattr(module, "decisions_of", lambda config: decisions)
    return decisions


@pytest.mark.parametrize("runner", [V1Runner, V2Runner])
@pytest.mark.parametrize("departs_at", [0, 1, 2])
@pytest.mark.parametrize("flagged", [True, False])
def test_a_flagged_answer_that_departs_from_the_condition_may_only_end(decisions, runner, departs_at, flagged):
    """Nothing is known that could make it; were there anything, the model's own words would not follow."""
    draw = random.Random(0)
    simulated, one = runner(None, draw), Request(0, draw)
    one.flagged, one.off, one.prompt, one.params = flagged, False, [1, *TAIL], SamplingParams()
    for step in range(8):
        simulated.arrange([one])
        one.read = len(one.prompt + one.written)
        decisions.put(torch.tensor([float(flagged)]), 0.5)
        logits = torch.zeros(1, VOCABULARY)
        logits[0, 13] = 3.0
        token = int(simulated.apply([one], logits).argmax(dim=-1))
        one.written.append(15 if step == departs_at else token)
    expected = [*CONDITION[:departs_at], 15, *[END] * (7 - departs_at)]
    own = [13] * 8
    own[departs_at] = 15
    assert one.written == (expected if flagged else own)


@pytest.mark.parametrize("runner", [V1Runner, V2Runner])
@pytest.mark.parametrize("seed", range(20))
def test_every_request_is_conditioned_as_it_should_be(decisions, runner, seed):
    draw = random.Random(seed)
    simulated = runner(None, draw)
    waiting, running = [Request(number, draw) for number in range(30)], []
    finished = []
    while waiting or running:
        while waiting and len(running) < SLOTS:
            running.append(waiting.pop(0))
        batch = simulated.arrange(draw.sample(running, draw.randint(1, len(running))))
        for one in batch:
            one.read = min(len(one.prompt + one.written), one.read + draw.randint(1, 4))
        # in the midst of a prompt, and after its end, the score is of another token: it must not count
        at_end = [one.read == len(one.prompt) for one in batch]
        scores = [float(one.flagged) if end else draw.random() for one, end in zip(batch, at_end, strict=True)]
        decisions.put(torch.tensor(scores), 0.5)
        logits = torch.randn(len(batch), VOCABULARY) - 50.0
        for row, one in enumerate(batch):
            logits[row, one.own] = 0.0
        tokens = simulated.apply(batch, logits).argmax(dim=-1).tolist()
        for one, token in zip(batch, tokens, strict=True):
            if one.read == len(one.prompt + one.written):
                one.written.append(token)
        for one in [one for one in batch if len(one.written) == len(one.expected)]:
            running.remove(one)
            simulated.leave(one)
            finished.append(one)
        if running and draw.random() < 0.1:  # preempted: it comes back with what it has written
            one = draw.choice(running)
            simulated.leave(one)
            one.read = 0
    assert [one.written for one in finished] == [one.expected for one in finished]
