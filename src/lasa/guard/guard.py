"""Stage 4: guarded generation in one pass. Read while the prompt is prefilled, decide, condition, go on.

The hidden state of the read point is observed inside the model's own prefill; flagged rows then begin with the
condition's tokens, on the same KV cache, in the same batch. A caller's prefill comes after the condition, and is read
as well. Answers may be read again while they are written.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lasa.data.prompts import Message
from lasa.errors import GuardError
from lasa.guard.model import GuardedModel
from lasa.guard.reading import BatchReading
from lasa.guard.row import GuardedAnswer, GuardedRow
from lasa.models.activated import acting_in_rows
from lasa.models.generation import GenerationSettings, GrowingAnswer, generate
from lasa.models.layers import observe_layers
from lasa.models.thinking import hidden_columns


class Guard(GuardedModel):
    """A model that is read while it answers, in one pass over a batch, and conditioned on what was read."""

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        settings: GenerationSettings | None = None,
        *,
        languages: Sequence[str | None] | None = None,
        prefills: Sequence[str] | None = None,
        streamer: Any = None,
    ) -> list[GuardedAnswer]:
        """Answer conversations, each on its own decision, in one batch.

        Args:
            conversations: Each ends in a user's or tool's message.
            settings: Length and sampling.
            languages: The users' languages where known, for thresholds and refusals in that language; identified
                where they are needed and not given.
            prefills: Text each assistant turn must begin with; it never displaces the condition, and is read too.
            streamer: A transformers streamer; it also sees condition and prefill tokens. None where answers are read
                again, for it would see what was not read.

        Raises:
            GuardError: The prompt was not read; nothing is answered then. Or there is a streamer and must be none.
            DataError: A conversation cannot be rendered or is too long.
        """
        settings = settings or GenerationSettings()
        if streamer is not None and self.policy.reread_every:
            raise GuardError("A streamer would see tokens before they are read again. Leave out one or the other.")
        count = len(conversations)
        asked = zip(conversations, languages or [None] * count, prefills or [""] * count, strict=True)
        questions = [self.question(messages, language, prefill) for messages, language, prefill in asked]
        if not questions:
            return []
        reading = BatchReading(self, questions, self.read_prefills(questions))
        rows: list[GuardedRow] = []

        def open_rows() -> list[GrowingAnswer]:
            decisions = reading.decisions()
            rows.extend(GuardedRow(self, q, d, settings) for q, d in zip(questions, decisions, strict=True))
            act_in([row.conditioned for row in rows])  # the prompt is read; what follows begins with the condition
            return [row.state for row in rows]

        def observe(layer: int, states: Tensor) -> None:
            if not reading.readings:
                reading.observe(layer, states)
            else:
                self.reread(rows, states)

        width = max(len(q.rendered.token_ids) for q in questions)
        columns = (width - len(self.thinking_tail), width)
        with (
            observe_layers(self.model, [self.layer], observe),
            hidden_columns(self.model, *columns, lambda: [i for i, row in enumerate(rows) if row.conditioned]),
            acting_in_rows(self.model) as act_in,
        ):
            generate(
                self.model,
                self.tokenizer,
                [q.rendered.token_ids for q in questions],
                settings,
                open_rows,
                longest_forced=max(self.longest_forced(q.prefill_ids) for q in questions)
                + (self.policy.reread_every > 0),  # a pass over the last token
                streamer=streamer,
            )
        reading.decisions()  # raises if the prompt was never read
        for row in rows:
            row.settle()
        return [row.outcome() for row in rows]

    def reread(self, rows: Sequence[GuardedRow], states: Tensor) -> None:
        """Score the newest token of the answers that are watched; they end where that is due and says so.

        Args:
            rows: The batch's rows.
            states: What was observed in a decoding step, `[rows, 1, H]`.
        """
        if not self.policy.reread_every:
            return
        watched = [index for index, row in enumerate(rows) if row.watched and not row.state.over]
        if watched:
            newest = states[:, -1] if len(watched) == len(rows) else states[watched, -1]
            listens = self.interpreter.config.answers is not None
            with torch.inference_mode():
                scores = (self.interpreter.answer_logits if listens else self.interpreter.probability)(newest).tolist()
            for index, score in zip(watched, scores, strict=True):
                rows[index].hear(score)
