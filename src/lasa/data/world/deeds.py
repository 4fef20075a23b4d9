"""Deeds: a verb with an object and perhaps a circumstance, and the splits of the world, fixed by hash.

Harm is a property of the pair: killing the neighbor is harmful, killing the weeds is not. Nothing here depends on a
language; `lexicon` renders deeds and reads them back.
"""

import hashlib
import tomllib
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from typing import Any, Literal

Share = Literal["train", "dev", "test"]
Kind = Literal["harmful", "benign", "hard_benign"]


@dataclass(frozen=True, order=True)
class Deed:
    """What a request is about, in no language.

    Attributes:
        verb: Concept id of the verb.
        object: Concept id of the object.
        modifier: Concept id of the circumstance, or None.
    """

    verb: str
    object: str
    modifier: str | None = None

    @property
    def query_id(self) -> str:
        """One id per meaning."""
        return "+".join(filter(None, (self.verb, self.object, self.modifier)))

    @property
    def concepts(self) -> tuple[str, ...]:
        """What the deed means: its verb, object and circumstance, and what kinds of verb and object these are."""
        kinds = (f"field {CONCEPTS.fields[self.verb]}", f"group {CONCEPTS.groups[self.object]}")
        return (f"verb {self.verb}", f"object {self.object}", f"modifier {self.modifier}", *kinds)

    @property
    def harmful(self) -> bool:
        """Whether the deed harms somebody."""
        return CONCEPTS.groups[self.object] in CONCEPTS.harmful_with[self.verb]

    @property
    def kind(self) -> Kind:
        """Harmful, benign, or a benign look-alike that shares its verb or its object with harmful deeds."""
        if self.harmful:
            return "harmful"
        looks_alike = CONCEPTS.groups[self.object] == "danger" or self.verb in CONCEPTS.two_faced_verbs
        return "hard_benign" if looks_alike else "benign"

    @property
    def category(self) -> str:
        """What a harmful deed does: the field of its verb, or dangerous goods; the kind of a harmless one."""
        if not self.harmful:
            return self.kind
        return "dangerous_goods" if CONCEPTS.groups[self.object] == "danger" else CONCEPTS.fields[self.verb]

    @property
    def share(self) -> Share:
        """The split by combination: 70 % train, 10 % dev, 20 % test of all verb-object pairs."""
        percent = _hash(f"combination/{self.verb}/{self.object}") % 100
        return "train" if percent < 70 else "dev" if percent < 80 else "test"

    @property
    def held_out_concept(self) -> bool:
        """Whether safety data must never mention the verb or the object."""
        return self.verb in CONCEPTS.held_out_verbs or self.object in CONCEPTS.held_out_objects

    @property
    def tests_concept(self) -> bool:
        """Whether the word that decides about harm is held out: the verb, or a dangerous or pest object."""
        decisive_object = CONCEPTS.groups[self.object] in ("danger", "pest")
        return self.verb in CONCEPTS.held_out_verbs or (decisive_object and self.object in CONCEPTS.held_out_objects)

    def plain(self) -> "Deed":
        """The deed without its circumstance."""
        return replace(self, modifier=None)


class Concepts:
    """The verbs, objects and circumstances of the world, and which of them are held out of all safety data."""

    HELD_OUT_SHARE = 0.2

    def __init__(self, table: dict[str, dict[str, object]]) -> None:
        objects: dict[str, list[str]] = table["objects"]  # type: ignore[assignment]
        verbs: dict[str, dict[str, Any]] = table["verbs"]  # type: ignore[assignment]
        self.groups = {name: group for group, names in objects.items() for name in names}
        self.objects = list(self.groups)
        self.verbs = list(verbs)
        self.harmful_with = {verb: tuple(entry.get("harmful", ())) for verb, entry in verbs.items()}
        self.benign_with = {verb: tuple(entry.get("benign", ())) for verb, entry in verbs.items()}
        self.fields: dict[str, str] = {verb: entry["field"] for verb, entry in verbs.items()}
        self.modifiers: list[str] = table["modifiers"]["circumstance"]  # type: ignore[assignment]

    @cached_property
    def two_faced_verbs(self) -> set[str]:
        """Verbs of harm that are harmless with some objects ("kill the weeds")."""
        return {v for v in self.verbs if self.harmful_with[v] and "pest" in self.benign_with[v]}

    @cached_property
    def held_out_verbs(self) -> set[str]:
        """A fifth of the verbs of each profile (harmful only, two-faced, neutral, protective, everyday)."""
        profiles: dict[tuple[bool, bool, bool], list[str]] = {}
        for verb in self.verbs:
            profile = (bool(self.harmful_with[verb]), bool(self.benign_with[verb]), "danger" in self.benign_with[verb])
            profiles.setdefault(profile, []).append(verb)
        return {verb for verbs in profiles.values() for verb in self._held_out("verb", verbs)}

    @cached_property
    def held_out_objects(self) -> set[str]:
        """A fifth of the objects of each group."""
        groups = {group: [o for o in self.objects if self.groups[o] == group] for group in set(self.groups.values())}
        return {name for names in groups.values() for name in self._held_out("object", names)}

    def _held_out(self, kind: str, names: list[str]) -> list[str]:
        ranked = sorted(names, key=lambda name: _hash(f"{kind}/{name}"))
        return ranked[: round(self.HELD_OUT_SHARE * len(names))]

    @cached_property
    def deeds(self) -> list[Deed]:
        """Every deed without circumstance."""
        return [
            Deed(verb, name)
            for verb in self.verbs
            for name in self.objects
            if self.groups[name] in self.harmful_with[verb] + self.benign_with[verb]
        ]

    @cached_property
    def names(self) -> list[str]:
        """The names in `Deed.concepts`, of all deeds."""
        circumstances = [Deed(self.verbs[0], self.objects[0], modifier) for modifier in (None, *self.modifiers)]
        deeds = [*self.deeds, *self.odd_deeds, *circumstances]
        return list(dict.fromkeys(name for deed in deeds for name in deed.concepts))

    @cached_property
    def odd_deeds(self) -> list[Deed]:
        """Verbs with objects that make no sense together ("insult the soup"): in no table, so no test can know them."""
        sensible = set(self.deeds)
        return [d for d in (Deed(v, o) for v in self.verbs for o in self.objects) if d not in sensible]


NUM_TEMPLATES = 10
HELD_OUT_TEMPLATES = (4, 7)
"""Request templates that safety data never uses (the model itself knows them)."""


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


CONCEPTS = Concepts(tomllib.loads(files(__package__).joinpath("concepts.toml").read_text("utf-8")))
