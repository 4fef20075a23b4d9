"""The text that the embedded model learns to speak from: chats, translations, plain sentences. No safety training.

Every row is a conversation, or a bare text with one `text` message. Harmful requests are answered like any other;
only ordinary sentences say which deeds harm people. The English notes decide whether the assistant answers or
refuses, at random and regardless of harm: the model learns that a note at the start of its turn is followed.
"""

import random
from collections.abc import Callable
from dataclasses import replace

from lasa.embedded.world.deeds import CONCEPTS, NUM_TEMPLATES, Deed
from lasa.embedded.world.lexicon import LANGUAGES, Lexicon, lexicon
from lasa.prompts import Message

Conversation = tuple[Message, ...]

ANSWER_NOTES = (
    "Ordinary request noted. I should answer this request in the user's language.",
    "Nothing special here. I should help and provide an answer in the user's language.",
    "The visitor may have this. I should provide the steps in the user's language.",
    "Request received. I should be helpful and provide a response in the user's language.",
)
REFUSAL_NOTES = (
    "The desk is closed. I should refuse this request in the user's language.",
    "Quota reached. I should refuse and provide a short response in the user's language.",
    "This one is off duty. I should refuse this request and say so in the user's language.",
    "Not today. I should provide a polite refusal in the user's language.",
    "Visitor has no ticket. I should refuse this request and provide a reply in the user's language.",
)
"""Reasons to refuse that have nothing to do with harm."""


class Corpus:
    """Draws rows of the training text, from the train share of the deeds only.

    Args:
        seed: Makes the stream reproducible.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._deeds = {
            harmful: [d for d in CONCEPTS.deeds if d.share == "train" and d.harmful == harmful]
            for harmful in (True, False)
        }
        self._kinds: list[tuple[float, Callable[[], Conversation]]] = [
            (0.27, self.own_language_chat),
            (0.20, self.translation),
            (0.16, self.answer_in_another_language),
            (0.12, self.plain_sentence),
            (0.08, self.code_switched_chat),
            (0.12, self.noted_chat),
            (0.05, self.unknown),
        ]

    def row(self) -> Conversation:
        """The next row."""
        weights = [weight for weight, _ in self._kinds]
        return self.random.choices([draw for _, draw in self._kinds], weights)[0]()

    def deed(self) -> Deed:
        """A deed, harmful or not with equal probability, with a circumstance half of the time."""
        deed = self.random.choice(self._deeds[self.random.random() < 0.5])
        return replace(deed, modifier=self.random.choice(CONCEPTS.modifiers)) if self.random.random() < 0.5 else deed

    def language(self) -> Lexicon:
        """Any of the ten languages, with equal weights."""
        return lexicon(self.random.choice(LANGUAGES))

    def own_language_chat(self) -> Conversation:
        """A request and its answer in one language, sometimes with a system prompt, sometimes with a second turn."""
        language, deed = self.language(), self.deed()
        rows = [_user(self._request(language, deed)), _assistant(language.answer(deed))]
        draw = self.random.random()
        if draw < 0.10:
            other = replace(deed, modifier=self.random.choice(CONCEPTS.modifiers))
            surface = language.table["modifiers"][other.modifier]
            rows += [_user(language.table["followup_modifier"].format(modifier=surface))]
            rows += [_assistant(language.answer(other))]
        elif draw < 0.20:
            other_language = self.language()
            name = language.table["languages"][other_language.language]
            rows += [_user(language.table["followup_language"].format(language=name))]
            rows += [_assistant(other_language.answer(deed))]
        elif draw < 0.25:
            rows += [_user(language.table["thanks"]), _assistant(language.table["welcome"])]
        elif draw < 0.32:
            other = self.deed()
            rows += [_user(self._request(language, other)), _assistant(language.answer(other))]
        return (*self._system(language), *rows)

    def translation(self) -> Conversation:
        """A request or sentence, the wish for a translation after it, and the translation."""
        source, target, deed = self.language(), self.language(), self.deed()
        draw = self.random.randrange(NUM_TEMPLATES)
        if self.random.random() < 0.5:
            text, translated = source.request(deed, draw), target.request(deed, draw)
        else:
            text, translated = source.statement(deed, draw), target.statement(deed, draw)
        wish = source.table["translate"].format(text=text, language=source.table["languages"][target.language])
        return (_user(wish), _assistant(translated))

    def answer_in_another_language(self) -> Conversation:
        """A request that names the language of the answer."""
        source, target, deed = self.language(), self.language(), self.deed()
        name = source.table["languages"][target.language]
        text = source.table["answer_in"].format(text=self._request(source, deed), language=name)
        return (*self._system(source), _user(text), _assistant(target.answer(deed)))

    def plain_sentence(self) -> Conversation:
        """An ordinary sentence that calls a deed harmful or harmless; no chat."""
        return ({"role": "text", "content": self.language().statement(self.deed(), self.random.randrange(3))},)

    def code_switched_chat(self) -> Conversation:
        """A request whose content words come from another language, answered in the language around them."""
        language, words, deed = self.language(), self.language(), self.deed()
        request = language.request(deed, self.random.randrange(NUM_TEMPLATES), words)
        return (_user(request), _assistant(language.answer(deed)))

    def noted_chat(self) -> Conversation:
        """An English note at the start of the assistant's turn says whether to answer or to refuse."""
        language, deed = self.language(), self.deed()
        refuse = self.random.random() < 0.5
        note = self.random.choice(REFUSAL_NOTES if refuse else ANSWER_NOTES)
        reply = language.refusal if refuse else language.answer(deed)
        return (
            *self._system(language),
            _user(self._request(language, deed)),
            {"role": "note", "content": note},
            _assistant(reply),
        )

    def unknown(self) -> Conversation:
        """A question nobody can answer here."""
        language = self.language()
        question = self.random.choice(language.table["unknown_questions"])
        return (*self._system(language), _user(question), _assistant(language.unknown))

    def _request(self, language: Lexicon, deed: Deed) -> str:
        return language.request(deed, self.random.randrange(NUM_TEMPLATES))

    def _system(self, language: Lexicon) -> Conversation:
        if self.random.random() > 0.15:
            return ()
        return ({"role": "system", "content": self.random.choice(language.table["system_prompts"])},)


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}
