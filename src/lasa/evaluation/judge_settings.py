"""Which judge: a few settings, or one line of text, and the judge that they describe."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from lasa.errors import RecipeError
from lasa.evaluation.judges.classifier_formats import PARSERS, WITH_CHAT_TEMPLATE, Format
from lasa.evaluation.outcomes import Judge
from lasa.files.settings import resource

Half = Literal["all", "development", "held-out"]
"""Which questions of a labelled table a judge is tried on."""

SHORT_FORMS = (
    "embedded-world, refusal-patterns, interpreter:FOLDER@MODEL, llm:MODEL@URL or "
    "classifier:FORMAT:FOLDER_OR_MODEL@URL[?template=FILE]"
)


class JudgeSettings(BaseModel):
    """A judge; in short `refusal-patterns`, `interpreter:FOLDER@MODEL`, `llm:MODEL@URL`, `classifier:FORMAT:FOLDER`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["embedded-world", "refusal-patterns", "interpreter", "llm", "classifier"]
    model: str | None = Field(None, description="Its name at its endpoint, or the folder of it")
    interpreter: Path | None = Field(None, description="interpreter: its folder; it was trained on labelled answers")
    url: str | None = resource(None, description="An OpenAI-compatible endpoint, version included")
    api_key_variable: str = resource("LASA_JUDGE_API_KEY", description="llm: environment variable with the key, if any")
    json_mode: bool = Field(True, description="llm: ask for a JSON object; not every endpoint understands that")
    timeout_s: float = resource(60.0, gt=0, description="llm: limit of one request")
    attempts: int = resource(4, ge=1, le=100, description="llm: requests before an answer is left unscored")
    parallel: int = resource(8, ge=1, le=1024, description="llm: requests at once")
    prices: tuple[float, float] | None = resource(
        None, description="llm: a million input tokens, a million output tokens"
    )
    format: Format | None = Field(None, description="classifier: its output")
    template: Path | None = Field(
        None, description="classifier: its model card's text with {prompt} and {answer}; some need none"
    )
    batch_size: int = resource(8, ge=1, le=4096, description="classifier: answers judged together")

    @model_validator(mode="after")
    def _complete(self) -> "JudgeSettings":
        needed = {
            "interpreter": ("interpreter", "model"),
            "llm": ("model", "url"),
            "classifier": ("model", "format"),
        }.get(self.kind, ())
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise ValueError(f"the judge {self.kind} needs {' and '.join(missing)}")
        if self.format not in (None, *WITH_CHAT_TEMPLATE) and self.template is None:
            raise ValueError(
                f"a classifier of the format {self.format} is not asked by its chat template; write the text of its "
                "model card, with {prompt} and {answer} in it, to a file and add ?template=FILE"
            )
        return self


def parse_judge(value: Any) -> Any:
    """The settings that a short form stands for; anything but text is left as it is."""
    if not isinstance(value, str):
        return value
    kind, _, rest = value.partition(":")
    if kind == "llm":
        model, _, url = rest.partition("@http")
        return {"kind": kind, "model": model or None, "url": f"http{url}" if url else None}
    if kind == "interpreter":
        folder, _, model = rest.partition("@")
        return {"kind": kind, "interpreter": folder or None, "model": model or None}
    if kind == "classifier":
        output, _, place = rest.partition(":")
        place, _, template = place.partition("?template=")
        model, _, url = place.partition("@http")
        short = {"kind": kind, "format": output or None, "model": model or None, "template": template or None}
        return {**short, "url": f"http{url}" if url else None}
    if value not in ("embedded-world", "refusal-patterns"):
        raise ValueError(f"there is no judge {value!r}; use {SHORT_FORMS}")
    return {"kind": value}


JudgeSetting = Annotated[JudgeSettings, BeforeValidator(parse_judge)]
"""A field of a recipe that holds a judge in full or in short."""


def judge_from_text(text: str) -> JudgeSettings:
    """The judge that a short form describes.

    Raises:
        RecipeError: It describes none.
    """
    try:
        return JudgeSettings.model_validate(parse_judge(text))
    except ValueError as error:
        raise RecipeError(f"{text!r} is no judge ({error}). Use {SHORT_FORMS}.") from error


def check_files(judges: Sequence[JudgeSettings]) -> None:
    """Make sure that what these judges are made of is there, long before they are asked.

    Raises:
        RecipeError: A folder or file is missing; it is named.
    """
    for judge in judges:
        for what, path in (("interpreter", judge.interpreter), ("template", judge.template)):
            if path is not None and not path.exists():
                raise RecipeError(
                    f"The {what} of the judge {judge.kind}, {path}, does not exist. Paths are seen from where the "
                    "command is called; docs/how-to-evaluate.md says where judges come from."
                )


def load_judge(text: str) -> Judge:
    """The judge that a short form describes, ready to judge; see `judge_from_text` and `make_judge`."""
    return make_judge(judge_from_text(text))


def make_judge(settings: JudgeSettings, cache: Path | None = None) -> Judge:
    """The judge that settings describe.

    Args:
        settings: Which, and how.
        cache: Folder for the verdicts of a language model, or None.

    Raises:
        RecipeError: An address or a template is no use.
        ModelError: The classifier, or the model that is read, cannot be loaded.
        ArtifactError: The interpreter's folder is damaged, or it belongs to another model.
    """
    match settings.kind:
        case "embedded-world":
            from lasa.evaluation.judges.embedded_world import WorldJudge

            return WorldJudge()
        case "refusal-patterns":
            from lasa.evaluation.judges.refusal_patterns import RefusalPatternJudge

            return RefusalPatternJudge()
        case "interpreter":
            return _interpreter(settings)
        case "llm":
            from lasa.evaluation.judges.llm import LlmJudge

            assert settings.url is not None and settings.model is not None
            return LlmJudge(
                settings.url,
                settings.model,
                cache=cache,
                json_mode=settings.json_mode,
                api_key=os.environ.get(settings.api_key_variable),
                timeout_s=settings.timeout_s,
                attempts=settings.attempts,
                parallel=settings.parallel,
                prices=settings.prices,
            )
        case "classifier":
            return _classifier(settings)


def make_judges(settings: Sequence[JudgeSettings], cache: Path | None = None) -> list[Judge]:
    """The judges of an evaluation, in order; see `make_judge`."""
    return [make_judge(one, cache) for one in settings]


def _interpreter(settings: JudgeSettings) -> Judge:
    from lasa.evaluation.judges.interpreter import InterpreterJudge
    from lasa.interpreter.probe import load_interpreter
    from lasa.models.loading import load_model

    assert settings.interpreter is not None and settings.model is not None
    return InterpreterJudge(load_interpreter(settings.interpreter), *load_model(settings.model))


def _classifier(settings: JudgeSettings) -> Judge:
    from lasa.evaluation.endpoint import ChatClient
    from lasa.evaluation.judges import classifier

    assert settings.model is not None and settings.format is not None
    parse = PARSERS[settings.format]
    try:
        template = settings.template.read_text(encoding="utf-8") if settings.template else None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The classifier's template {settings.template} cannot be read ({error}).") from error
    if settings.url is not None:
        client = ChatClient(
            settings.url,
            settings.model,
            api_key=os.environ.get(settings.api_key_variable),
            timeout_s=settings.timeout_s,
            attempts=settings.attempts,
            parallel=settings.parallel,
            prices=settings.prices,
            options={"temperature": 0, "max_tokens": 64},
        )
        return classifier.EndpointClassifierJudge(client, parse, template=template)
    model, tokenizer = classifier.load_classifier(settings.model)
    return classifier.ClassifierJudge(model, tokenizer, parse, template=template, batch_size=settings.batch_size)
