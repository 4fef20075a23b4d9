import copy

from lasa.models.template import fix_template
from lasa.models.template_options import same_prompt

HELLO = ({"role": "user", "content": "hello"},)


def test_an_option_that_the_template_was_fixed_against_does_not_leave_the_prompt_as_it_is(tokenizer):
    fixed = copy.deepcopy(tokenizer)
    fixed.chat_template += "{% if not enable_thinking %}{{ '<|end|>' }}{% endif %}"
    fix_template(fixed, {"enable_thinking": False}, None)
    assert same_prompt(fixed, HELLO, {"enable_thinking": False})
    assert not same_prompt(fixed, HELLO, {"enable_thinking": True})
    assert same_prompt(fixed, HELLO, {"unknown": 1})


def test_the_renderers_own_arguments_are_no_options(tokenizer):
    for options in ({"chat_template": tokenizer.chat_template}, {"tokenize": False}, {"bos_token": "x"}):
        assert not same_prompt(tokenizer, HELLO, options)
