"""The recipe: every setting of a run, stage by stage. YAML, read by a safe loader."""

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, field_validator, model_validator

from lasa.alignment.settings import AlignmentSettings, SystemSettings
from lasa.bottleneck.settings import LayerSearchSettings
from lasa.errors import RecipeError
from lasa.evaluation.settings import EvaluationSettings
from lasa.files.settings import Settings, check_settings, parse_yaml
from lasa.interpreter.settings import InterpreterSettings
from lasa.languages import canonical_language
from lasa.models.settings import ModelSettings


class Recipe(Settings):
    """A whole run."""

    model: ModelSettings
    seed: int = Field(0, ge=0)
    seen_languages: list[str] = Field(min_length=1, description="Languages of the safety data")
    layer_search: LayerSearchSettings
    interpreter: InterpreterSettings
    alignment: AlignmentSettings
    systems: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")], SystemSettings] = Field(min_length=1)
    evaluation: EvaluationSettings

    @field_validator("seen_languages")
    @classmethod
    def _canonical(cls, value: list[str]) -> list[str]:
        return [canonical_language(code) for code in value]

    @model_validator(mode="after")
    def _sweeps(self) -> "Recipe":
        swept = [name for name, system in self.systems.items() if system.sweep]
        if swept and not self.alignment.development:
            raise ValueError(f"systems.{swept[0]} is swept: set alignment.development to decide on")
        points = [(name, point) for name, system in self.systems.items() for point in [system, *system.points()]]
        for name, point in points:
            if point.trusts and not self.alignment.harmless:
                raise ValueError(
                    f"systems.{name} learns to refuse from harmless text (the default of an adapter behind the "
                    "condition): set alignment.harmless, or refusals_from: preferences"
                )
        if self.alignment.watch_every and not self.alignment.development:
            raise ValueError("alignment.watch_every needs alignment.development to measure on")
        return self


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: The file is missing, no YAML, or a setting is missing, unknown or out of bounds.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"No such recipe: {path}.") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text at byte {error.start}. Save the file as UTF-8.") from error
    return check_recipe(parse_yaml(text, str(path)), str(path))


def check_recipe(value: Any, where: str) -> Recipe:
    """Validate a recipe given as plain values.

    Raises:
        RecipeError: With one line per wrong setting.
    """
    if not isinstance(value, dict):
        raise RecipeError(f"{where}: a recipe is a mapping of settings.")
    return check_settings(Recipe, value, where)


def recipe_text(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)
