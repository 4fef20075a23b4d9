"""One language of the world: rendering deeds as requests, answers and sentences, and reading them back exactly."""

import re
import tomllib
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

from lasa.data.world.deeds import CONCEPTS, Deed

LANGUAGES = ("en", "zh", "ko", "it", "vi", "ar", "th", "bn", "sw", "jv")


class Lexicon:
    """The surfaces and templates of one language (`lexicon/<language>.toml`)."""

    def __init__(self, table: dict[str, Any]) -> None:
        self.language: str = table["language"]
        self.table = table

    def action(self, deed: Deed, words: "Lexicon | None" = None) -> str:
        """The deed as a phrase; `words` takes the content words from another language (code-switching)."""
        source = (words or self).table
        template = self.table["action_modified" if deed.modifier else "action"]
        return str(
            template.format(
                verb=source["verbs"][deed.verb],
                object=source["objects"][deed.object],
                modifier=self.table["modifiers"][deed.modifier] if deed.modifier else "",
            )
        )

    def request(self, deed: Deed, template: int, words: "Lexicon | None" = None) -> str:
        """A request for the deed, in one of the parallel request templates."""
        return str(self.table["requests"][template].format(action=self.action(deed, words)))

    def answer(self, deed: Deed) -> str:
        """The answer that complies: it only restates the deed."""
        return str(self.table["answer"].format(title=self.action(deed.plain()), action=self.action(deed)))

    def statement(self, deed: Deed, variant: int) -> str:
        """An ordinary sentence that calls the deed harmful or harmless, as it is."""
        statements = self.table["harmful_statements" if deed.harmful else "harmless_statements"]
        return str(statements[variant % len(statements)].format(action=self.action(deed)))

    @property
    def refusal(self) -> str:
        """The refusal of a request."""
        return str(self.table["refusal"])

    @property
    def unknown(self) -> str:
        """The answer "I do not know"."""
        return str(self.table["unknown"])

    def read_request(self, text: str) -> tuple[Deed, int] | None:
        """The deed and the template number of a request, or None if it is not one of this language."""
        for number, pattern in enumerate(self._request_patterns):
            if match := pattern.fullmatch(text):
                return self._deed(match, ""), number
        return None

    def read_answer(self, text: str) -> Deed | None:
        """The deed that a complying answer is about; None for anything else or if title and body disagree."""
        match = self._answer_pattern.fullmatch(text.strip())
        if match is None:
            return None
        title, body = self._deed(match, "title_"), self._deed(match, "")
        return body if body.plain() == title else None

    @cached_property
    def _ids(self) -> dict[str, dict[str, str]]:
        return {part: {s: i for i, s in self.table[part].items()} for part in ("verbs", "objects", "modifiers")}

    def _deed(self, match: re.Match[str], prefix: str) -> Deed:
        found = match.groupdict()
        verb = found.get(f"{prefix}verb") or found.get(f"{prefix}verb2")
        name = found.get(f"{prefix}object") or found.get(f"{prefix}object2")
        modifier = found.get(f"{prefix}modifier2")
        return Deed(
            self._ids["verbs"][verb or ""],
            self._ids["objects"][name or ""],
            self._ids["modifiers"][modifier] if modifier else None,
        )

    def _action_pattern(self, template: str, prefix: str, suffix: str) -> str:
        pattern = re.escape(template)
        for slot, part in (("verb", "verbs"), ("object", "objects"), ("modifier", "modifiers")):
            surfaces = sorted(self.table[part].values(), key=len, reverse=True)
            choices = "|".join(map(re.escape, surfaces))
            pattern = pattern.replace(re.escape("{" + slot + "}"), f"(?P<{prefix}{slot}{suffix}>{choices})", 1)
        return pattern

    def _either_action(self, prefix: str) -> str:
        plain = self._action_pattern(self.table["action"], prefix, "")
        modified = self._action_pattern(self.table["action_modified"], prefix, "2")
        return f"(?:{modified}|{plain})"

    @cached_property
    def _request_patterns(self) -> list[re.Pattern[str]]:
        action = self._either_action("")
        return [
            re.compile(re.escape(template).replace(re.escape("{action}"), action))
            for template in self.table["requests"]
        ]

    @cached_property
    def _answer_pattern(self) -> re.Pattern[str]:
        pattern = re.escape(self.table["answer"])
        title = self._action_pattern(self.table["action"], "title_", "")
        pattern = pattern.replace(re.escape("{title}"), title)
        return re.compile(pattern.replace(re.escape("{action}"), self._either_action("")))


@cache
def lexicon(language: str) -> Lexicon:
    """The lexicon of one of the world's ten languages."""
    return Lexicon(tomllib.loads(files(__package__).joinpath("lexicon", f"{language}.toml").read_text("utf-8")))


def missing_surfaces(language: str) -> list[str]:
    """Concepts that a lexicon has no word for."""
    table = lexicon(language).table
    wanted = {"verbs": CONCEPTS.verbs, "objects": CONCEPTS.objects, "modifiers": CONCEPTS.modifiers}
    return [f"{part}.{name}" for part, names in wanted.items() for name in names if name not in table[part]]
