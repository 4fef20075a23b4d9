import pytest

from lasa.cli.serve import _by_category
from lasa.errors import RecipeError


def test_kinds_of_harm_have_actions_of_their_own():
    assert _by_category(["self_harm=help", "hate=log"]) == {"self_harm": "help", "hate": "log"}
    assert _by_category([]) == {}


@pytest.mark.parametrize("given", ["self_harm", "=help", "hate=perhaps", "hate="])
def test_what_is_no_pair_of_kind_and_action_is_an_error(given):
    with pytest.raises(RecipeError, match="NAME=ACTION with an action out of condition, refuse, help, log, off"):
        _by_category([given])
