"""Settings: strict models with bounds and descriptions, from YAML that a safe loader reads.

Every stage has one model of its settings; a recipe, the stage's own code and the options of its command share it.
"""

import math
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lasa.errors import RecipeError

Fraction = Annotated[float, Field(gt=0, lt=1)]

MAX_VALUES = 100_000
"""Characters of a recipe, and values once its aliases are written out; a recipe has some hundred."""


class Settings(BaseModel):
    """Settings that do not change, none of them unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def resource(default: Any, **facts: Any) -> Any:
    """A field that decides what a run costs and not what it finds: it may change when a run goes on.

    Args:
        default: Of the field.
        facts: Bounds and description, as pydantic's `Field` takes them.
    """
    return Field(default, json_schema_extra={"resource": True}, **facts)


def resources(settings: BaseModel, within: str = "") -> set[str]:
    """Names of the fields that are resources, those of nested settings included: `evaluation.judge.url`.

    Args:
        settings: Any settings.
        within: Name of the field that holds them.
    """
    found = set()
    for name, field in type(settings).model_fields.items():
        value, full = getattr(settings, name), f"{within}.{name}".lstrip(".")
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("resource"):
            found.add(full)
        parts = value.items() if isinstance(value, dict) else [("", value)]
        for key, part in parts:
            if isinstance(part, BaseModel):
                found |= resources(part, f"{full}.{key}".rstrip("."))
    return found


def parse_yaml(text: str, where: str) -> Any:
    """The plain values of a YAML text. No tag makes an object, and no chain of aliases grows beyond all bounds.

    Raises:
        RecipeError: It is not YAML, or too large.
    """
    try:
        document = yaml.compose(text, yaml.SafeLoader) if len(text) <= MAX_VALUES else None
        if len(text) > MAX_VALUES or _size(document, {}) > MAX_VALUES:
            raise RecipeError(
                f"{where} is larger than any recipe (over {MAX_VALUES:,} values). Is this the right file?"
            )
        return yaml.safe_load(text)
    except RecipeError:
        raise
    except Exception as error:  # besides YAMLError whatever PyYAML's constructors of tagged values raise
        raise RecipeError(f"{where} is not a readable YAML file: {error}") from error


def _said(problem: Any) -> str:
    """What is wrong with a setting, and what was given where it is a plain value."""
    given = problem["input"]
    return str(problem["msg"]) + (f", not {given!r:.60}" if isinstance(given, str | int | float) else "")


def _size(node: yaml.Node | None, known: dict[int, float]) -> float:
    """Number of values of a node with its aliases written out; infinite if it contains itself."""
    if node is None:
        return 0
    if id(node) not in known:
        known[id(node)] = math.inf
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


Section = TypeVar("Section", bound=Settings)


def check_settings(section: type[Section], value: dict[str, Any], where: str) -> Section:
    """Validate a recipe, or one section of it, given as plain values.

    Raises:
        RecipeError: With one line per wrong setting.
    """
    try:
        return section.model_validate(value)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, one['loc'])) or '(recipe)'}: {_said(one)}" for one in error.errors()]
        raise RecipeError(f"{where} has {len(lines)} wrong setting(s):\n" + "\n".join(lines)) from error
    except RecipeError:
        raise
    except Exception as error:
        raise RecipeError(f"{where}: {error}") from error
