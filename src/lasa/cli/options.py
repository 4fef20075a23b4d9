"""Command-line options from settings models: name, type, default and help stand in one place."""

import inspect
from collections.abc import Callable, Collection, Mapping
from datetime import date
from functools import wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from lasa.errors import RecipeError
from lasa.files.settings import Settings, check_settings, parse_yaml
from lasa.models.settings import ModelSettings

if TYPE_CHECKING:
    from lasa.guard.system import System


def with_settings(
    section: type[Settings],
    parameter: str,
    *,
    called: Mapping[str, str] | None = None,
    without: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of a settings model, and the checked settings as one parameter.

    Args:
        section: The model.
        parameter: The command's parameter that takes the settings.
        called: Options that have another name than their field.
        without: Fields without an option.
        defaults: Defaults that replace the model's.
    """
    names = {field: (called or {}).get(field, field) for field in section.model_fields if field not in without}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature, hints = inspect.signature(command), get_type_hints(command, include_extras=True)
        own = [p.replace(annotation=hints[p.name]) for p in signature.parameters.values() if p.name != parameter]
        added = [
            inspect.Parameter(
                option,
                inspect.Parameter.KEYWORD_ONLY,
                default=_option(option, section.model_fields[field], (defaults or {}).get(field, PydanticUndefined)),
                annotation=_plain(section.model_fields[field].annotation),
            )
            for field, option in names.items()
        ]

        @wraps(command)
        def run(*given: Any, **options: Any) -> None:
            where = f"lasa {command.__name__.replace('_', '-')}"
            values = {field: _value(section, field, options.pop(name), where) for field, name in names.items()}
            command(*given, **options, **{parameter: check_settings(section, values, where)})

        before = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        run.__signature__ = signature.replace(parameters=[*added, *before])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in [*added, *before]}
        return run

    return decorate


with_model = with_settings(ModelSettings, "model", called={"path": "model"}, defaults={"path": "embedded"})
"""The options of a command that takes a model; the embedded one by default."""


class SystemChoice(Settings):
    """A system of a run, or an interpreter for the command's model."""

    run: Path | None = Field(None, description="Run folder, whose model and interpreter are used")
    system: str | None = Field(None, description="System of that run; the last one by default")
    interpreter: Path | None = Field(None, description="Interpreter folder: guard --model with it")
    force: bool = Field(False, description="Also guard a model that the interpreter was not trained on")

    def find(self, model: ModelSettings, device: str = "auto") -> "System":
        """The system that is meant; see `find_system`.

        Args:
            model: The command's model; beside a run, how the run's is loaded.
            device: Where this process computes, if not where `model` says.

        Raises:
            RecipeError: Beside a run, another model or interpreter is named, or another way to render.
        """
        from lasa.run.systems import find_system

        if self.run is not None:
            default = ModelSettings(path="embedded", **model.loading)
            others = [name for name, value in model if value != getattr(default, name)]
            named = ["--model" if name == "path" else f"--{name.replace('_', '-')}" for name in others]
            named += ["--interpreter"] if self.interpreter is not None else []
            if named:
                raise RecipeError(
                    f"{named[0]} cannot be given beside --run: {self.run} says which model, interpreter and template "
                    "belong together. Leave out one of the two."
                )
        if device != "auto":
            model = model.model_copy(update={"device": device})
        return find_system(
            run=self.run, system=self.system, model=model, interpreter=self.interpreter, forced=self.force
        )


def _option(name: str, field: FieldInfo, default: Any) -> Any:
    if default is PydanticUndefined:
        default = ... if field.is_required() else field.get_default(call_default_factory=True)
    flag = f"--{name.replace('_', '-')}"
    default = [] if default == {} else default
    text = field.description or name.replace("_", " ").capitalize()
    choices = [str(one) for part in (field.annotation, *get_args(field.annotation)) for one in _choices(part)]
    return typer.Option(default, flag, help=f"{text} ({', '.join(choices)})." if choices else f"{text}.")


def _choices(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _value(section: type[Settings], field: str, given: Any, where: str) -> Any:
    """What was given for a field; pairs `NAME=VALUE` where it takes a mapping."""
    if get_origin(section.model_fields[field].annotation) is not dict:
        return given
    pairs = [pair.partition("=") for pair in given]
    wrong = [name for name, equals, _ in pairs if not equals]
    if wrong:
        raise RecipeError(f"{where}: --{field.replace('_', '-')} takes NAME=VALUE, not {wrong[0]!r}.")
    return {name: parse_yaml(value, where) for name, _, value in pairs}


def _plain(annotation: Any) -> Any:
    """A type without pydantic's constraints, as typer understands it."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _plain(inside[0])
    if origin in (Union, UnionType):
        [one] = [_plain(part) for part in inside if part is not NoneType]
        return one | None
    if origin is dict or annotation is date:
        return list[str] if origin is dict else str
    if origin is list:
        return list[_plain(inside[0])]  # type: ignore[misc]
    return annotation if origin is not Literal else str
