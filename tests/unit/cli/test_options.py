"""Options of a command that come from a settings model."""

from datetime import date
from typing import Annotated, Literal

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from lasa.cli.options import with_settings
from lasa.errors import RecipeError
from lasa.files.settings import Fraction, Settings


class Chosen(Settings):
    sources: list[str] = Field(min_length=1, description="Where from")
    kind: Literal["one", "two"] = "one"
    share: Fraction | None = None
    count: Annotated[int, Field(ge=1)] = 3
    hidden: int = 7
    extra: dict[str, bool | int | str] = Field(default_factory=dict)
    day: date | None = None


@pytest.fixture
def call():
    app, seen = typer.Typer(), []

    @app.command()
    @with_settings(Chosen, "chosen", called={"sources": "source"}, without=("hidden",), defaults={"kind": "two"})
    def try_it(chosen: Chosen, loud: bool = typer.Option(False, "--loud")) -> None:
        seen.append((chosen, loud))

    def run(*arguments):
        result = CliRunner().invoke(app, arguments)
        return result, seen[-1] if seen else None

    return run


def test_every_field_is_an_option_with_the_models_default_unless_the_command_has_another(call):
    _, (chosen, loud) = call("--source", "a", "--source", "b", "--share", "0.5", "--loud")
    assert chosen == Chosen(sources=["a", "b"], kind="two", share=0.5)
    assert loud


def test_a_required_field_is_a_required_option_and_a_field_left_out_is_none(call):
    assert "--source" in call()[0].output
    assert call("--source", "a", "--hidden", "1")[0].exit_code == 2


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--share", "2"), "lasa try-it has 1 wrong setting(s):\n  share: Input should be less than 1, not 2.0"),
        (("--kind", "three"), "kind: Input should be 'one' or 'two', not 'three'"),
        (("--count", "0"), "count: Input should be greater than or equal to 1, not 0"),
    ],
)
def test_a_value_out_of_bounds_is_named_with_its_option(call, flags, told):
    error = call("--source", "a", *flags)[0].exception
    assert isinstance(error, RecipeError) and told in str(error)


def test_a_mapping_is_given_as_pairs_and_a_day_as_text(call):
    pairs = ("--extra", "thinking=false", "--extra", "steps=3", "--extra", "name=x")
    _, (chosen, _) = call("--source", "a", *pairs, "--day", "2026-01-31")
    assert chosen.extra == {"thinking": False, "steps": 3, "name": "x"}
    assert chosen.day == date(2026, 1, 31)
    assert "takes NAME=VALUE, not 'thinking'" in str(call("--source", "a", "--extra", "thinking")[0].exception)


def test_help_names_the_choices(call):
    assert "(one, two)" in " ".join(call("--help")[0].output.split())
