import pytest
from transformers import AutoTokenizer

from lasa.evaluation.reasoning import Reasoned, special_marks, split_reasoning, split_tokens

BLOCKS = [
    ("<think>\nHm.\n</think>\n\nYes.", Reasoned("Hm.", "Yes.")),
    ("<think></think>Yes.", Reasoned("", "Yes.")),
    ("[THINK]Hm.[/THINK]Yes.", Reasoned("Hm.", "Yes.")),
    ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
     Reasoned("Hm.<|end|><|start|>assistant", "Yes.")),
    ("Hm.\n</think>\n\nYes.", Reasoned("Hm.", "Yes.")),  # the template had opened it
    ("<think>a</think><think>b</think>Yes.", Reasoned("a\n\nb", "Yes.")),
    ("First.<think>Hm.</think> Then.", Reasoned("Hm.", "First. Then.")),
    ("Sure: <think> is a mark.", Reasoned("", "Sure: <think> is a mark.")),
    ("  Yes. ", Reasoned("", "  Yes. ")),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), BLOCKS)
def test_thoughts_and_answer_are_told_apart(text, expected):
    assert split_reasoning(text) == expected


@pytest.mark.parametrize("text", ["<think>\nThe user wants", "<think>a</think><think>The user wants"])
def test_thoughts_that_did_not_end_are_no_answer(text):
    found = split_reasoning(text)
    assert found.answer is None
    assert found.reasoning.endswith("The user wants")


def test_where_the_template_opens_the_block_a_text_without_its_end_is_thoughts():
    assert split_reasoning("The user wants", opened=True) == Reasoned("The user wants", None)
    assert split_reasoning("Hm.</think>Yes.", opened=True) == Reasoned("Hm.", "Yes.")


def test_marks_that_are_special_tokens_are_found_among_the_tokens(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    special = AutoTokenizer.from_pretrained(tmp_path)
    special.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    ids = special("[THINK]paint[/THINK]water", add_special_tokens=False)["input_ids"]
    text = special.decode(ids, skip_special_tokens=True)
    assert text == "paintwater"
    marks = special_marks(special)
    assert split_tokens(special, marks, ids, text) == Reasoned("paint", "water")
    assert split_tokens(special, marks, ids[:3], special.decode(ids[:3], skip_special_tokens=True)).answer is None
