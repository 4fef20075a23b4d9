"""The text that the embedded model learns to speak from: chats, translations, plain sentences. No safety training.

Every row is a conversation, or a bare text with one `text` message. Harmful requests are answered like any other;
only ordinary sentences say which deeds harm people. The English notes decide whether the assistant answers or
refuses, at random and regardless of harm: the model learns that a note at the start of its turn is followed.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from lasa.data.prompts import Message
from lasa.data.world.deeds import CONCEPTS, NUM_TEMPLATES, Deed
from lasa.data.world.lexicon import LANGUAGES, Lexicon, lexicon

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

SYSTEM_SHARE = 0.15
"""Share of the chats that begin with a system prompt."""


@dataclass(frozen=True)
class World:
    """What the text talks about; a part of the whole makes a miniature that is learned in a minute.

    Attributes:
        languages: Languages of the text.
        concept_share: Share of the verbs and of the objects that are used.
    """

    languages: tuple[str, ...] = LANGUAGES
    concept_share: float = 1.0

    @cached_property
    def deeds(self) -> list[Deed]:
        """The deeds of the train share."""
        return [deed for deed in self._known(CONCEPTS.deeds) if deed.share == "train"]

    @cached_property
    def odd_deeds(self) -> list[Deed]:
        """Verbs with objects that make no sense together."""
        return self._known(CONCEPTS.odd_deeds)

    @cached_property
    def deeds_by_harm(self) -> dict[bool, list[Deed]]:
        """The harmful ones of `deeds` under True, the others under False."""
        return {harmful: [d for d in self.deeds if d.harmful == harmful] for harmful in (True, False)}

    def _known(self, deeds: list[Deed]) -> list[Deed]:
        verbs, objects = self._some(CONCEPTS.verbs), self._some(CONCEPTS.objects)
        return [deed for deed in deeds if deed.verb in verbs and deed.object in objects]

    def _some(self, names: list[str]) -> set[str]:
        count = round(self.concept_share * len(names))
        return {names[i * len(names) // count] for i in range(count)}


ODD_SHARE = 0.5
"""Share of the talk about senseless deeds. Without it the model learns which pairs there are, not their words."""


class Corpus:
    """Draws rows of the training text, from the train share of the deeds and from senseless ones only.

    Args:
        draws: Makes the stream reproducible; a seed, or a generator to draw from.
        world: What there is to talk about.
    """

    def __init__(self, draws: int | random.Random, world: "World | None" = None) -> None:
        self.random = draws if isinstance(draws, random.Random) else random.Random(draws)
        self.world = world or World()
        self._kinds: list[tuple[float, Callable[[], Conversation]]] = [
            (0.34, self.own_language_chat),
            (0.20, self.translation),
            (0.15, self.answer_in_another_language),
            (0.12, self.plain_sentence),
            (0.07, self.code_switched_chat),
            (0.09, self.noted_chat),
            (0.03, self.unknown),
        ]

    def row(self) -> Conversation:
        """The next row."""
        weights = [weight for weight, _ in self._kinds]
        return self.random.choices([draw for _, draw in self._kinds], weights)[0]()

    def deed(self, *, odd_share: float = ODD_SHARE) -> Deed:
        """A deed, harmful or not with equal probability, with a circumstance half of the time."""
        if self.random.random() < odd_share:
            deed = self.random.choice(self.world.odd_deeds)
        else:
            deed = self.random.choice(self.world.deeds_by_harm[self.random.random() < 0.5])
        return self.in_some_circumstance(deed)

    def in_some_circumstance(self, deed: Deed) -> Deed:
        """The deed with a circumstance, half of the time."""
        return replace(deed, modifier=self.random.choice(CONCEPTS.modifiers)) if self.random.random() < 0.5 else deed

    def language(self) -> Lexicon:
        """Any language of the world, with equal weights."""
        return lexicon(self.random.choice(self.world.languages))

    def confusable_deeds(self, count: int) -> list[Deed]:
        """Different deeds of which many share a verb or an object, so that both must be told apart."""
        pool = self.world.deeds + self.world.odd_deeds
        found: dict[Deed, None] = {}
        while len(found) < count:
            deed = self.random.choice(pool)
            same_verb = self.random.choice([d for d in pool if d.verb == deed.verb])
            same_object = self.random.choice([d for d in pool if d.object == deed.object])
            found.update(dict.fromkeys((deed, same_verb, same_object)))
        return list(found)[:count]

    def prompt(self, deed: Deed, *, system: bool) -> Conversation:
        """A request for the deed in any language."""
        language = self.language()
        return (*self._system(language, probability=float(system)), _user(self._request(language, deed)))

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
        source, target, draw = self.language(), self.language(), self.random.randrange(NUM_TEMPLATES)
        if self.random.random() < 0.5:
            deed = self.deed()
            text, translated = source.request(deed, draw), target.request(deed, draw)
        else:
            deed = self.deed(odd_share=0)
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
        language, deed = self.language(), self.deed(odd_share=0)
        return ({"role": "text", "content": language.statement(deed, self.random.randrange(3))},)

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

    def _system(self, language: Lexicon, probability: float = SYSTEM_SHARE) -> Conversation:
        if self.random.random() >= probability:
            return ()
        return ({"role": "system", "content": self.random.choice(language.table["system_prompts"])},)


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}
