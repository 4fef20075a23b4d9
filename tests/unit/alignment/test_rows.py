import json
import random
from itertools import pairwise

import pytest

from lasa.alignment.rows import decisions, kl_partners, separate_partners, token_rows, wrong_language_refusals
from lasa.conditioning.condition import condition_ids
from lasa.data.preferences import Preference, read_preferences
from lasa.data.prompts import user_prompt
from lasa.errors import DataError, RecipeError
from lasa.models.rendering import render


def preferences(count=12):
    return [
        Preference(user_prompt(str(n), "en", f"how do I paint house {n}", harmful=n % 2 == 0), f"yes {n}", f"no {n}")
        for n in range(count)
    ]


def test_a_row_is_prompt_condition_completion_and_the_templates_terminator(tokenizer):
    one = preferences(1)
    rows = token_rows(tokenizer, one, [condition_ids(tokenizer)], seed=0)
    prompt = render(tokenizer, one[0].prompt.messages).token_ids
    good = next(row for row in rows if row.desirable)
    assert good.prompt_ids == prompt + condition_ids(tokenizer)
    assert tokenizer.decode(good.completion_ids) == "yes 0<|end|>"
    assert (good.prompt_ids + good.completion_ids).count(tokenizer.bos_token_id) == 1


def test_condition_and_completion_tokens_never_merge(tokenizer):
    condition = condition_ids(tokenizer, "Stop here.")
    rows = token_rows(tokenizer, preferences(1), [condition], seed=0)
    assert all(row.prompt_ids[-len(condition) :] == condition for row in rows)


@pytest.mark.parametrize("text", ["", " ", "ends in a space ", "\nstarts in one"])
def test_a_condition_that_could_merge_is_refused(tokenizer, text):
    with pytest.raises(RecipeError, match="without white space at its ends"):
        condition_ids(tokenizer, text)


def test_labels_and_prompts_are_mixed(tokenizer):
    rows = token_rows(tokenizer, preferences(50), [[]] * 50, seed=0)
    labels = [row.desirable for row in rows]
    changes = sum(a != b for a, b in pairwise(labels))
    assert changes > 25
    assert sum(a.query_id == b.query_id for a, b in pairwise(rows)) < 10


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("batch", [2, 3, 8])
def test_every_kl_partner_comes_from_another_prompt(tokenizer, seed, batch):
    rows = token_rows(tokenizer, preferences(12), [[]] * 12, seed=seed)
    rows.sort(key=lambda row: row.query_id)  # the worst order: the two answers of a prompt side by side
    kept = separate_partners(rows, batch)
    owner = {tuple(row.completion_ids): row.query_id for row in rows}
    for row, partner in zip(kept, kl_partners(kept, batch), strict=True):
        assert owner[tuple(partner)] != row.query_id
    assert len(kept) == len(rows) - len(rows) % batch
    for start in range(0, len(kept), batch):
        inside = kept[start : start + batch]
        partners = kl_partners(kept, batch)[start : start + batch]
        assert sorted(map(tuple, partners)) == sorted(tuple(row.completion_ids) for row in inside)


def test_one_prompt_alone_cannot_be_paired(tokenizer):
    rows = token_rows(tokenizer, preferences(1), [[]], seed=0)
    with pytest.raises(DataError, match="Too few different queries"):
        separate_partners(rows, 2)


def test_the_signal_decides_which_rows_are_conditioned():
    table = preferences(40)
    harmful = [p.prompt.harmful for p in table]
    wrong = [random.Random(0).random() < 0.5 for _ in table]
    assert decisions(table, "label", lambda prompts: wrong) == harmful
    assert decisions(table, "none", lambda prompts: wrong) == [False] * 40
    coin = decisions(table, "sampled", lambda prompts: wrong, seed=1)
    assert 0 < sum(coin) < sum(harmful) and not any(c and not h for c, h in zip(coin, harmful, strict=True))
    assert decisions(table, "interpreter", lambda prompts: wrong) == wrong


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "", "chosen": "a", "language": "en", "harmful": true}', "row 1, column 'prompt'"),
        ('{"prompt": "x", "language": "en", "harmful": true}', "needs an answer in 'chosen' or 'rejected'"),
        ('{"prompt": "x", "chosen": "a", "language": "xx", "harmful": true}', "row 1, column 'language'"),
        ('{"prompt": "x", "chosen": "a", "language": "en"}', "row 1, column 'harmful'"),
        (
            '{"prompt": "x", "chosen": "a", "language": "en", "harmful": "perhaps"}',
            "column 'harmful': expected true or",
        ),
        ('{"prompt": "x", "completion": "a", "label": "good", "language": "en", "harmful": true}', "column 'label'"),
        ('{"prompt": "x", "chosen": " ", "language": "en", "harmful": true}', "column 'chosen': the answer is empty"),
        (
            '{"prompt": "y", "chosen": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "a"}], '
            '"language": "en", "harmful": true}',
            "column 'chosen': the messages before the answer are not the prompt",
        ),
        (
            '{"prompt": "x", "chosen": [{"role": "user", "content": "x"}], "language": "en", "harmful": true}',
            "column 'chosen': expected a text, or a list of messages that ends in one of the assistant",
        ),
        ('{"chosen": "a", "language": "en", "harmful": true}', "column 'prompt': there is no prompt"),
        (
            '{"prompt": "x", "chosen": "a", "language": "en", "harmful": true, "unfinished": "both"}',
            "column 'unfinished': expected chosen or rejected",
        ),
    ],
)
def test_a_bad_preference_file_names_row_and_column(tmp_path, line, message):
    path = tmp_path / "preferences.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        read_preferences(path)


def test_unpaired_files_are_read(tmp_path):
    path = tmp_path / "unpaired.jsonl"
    path.write_text('{"prompt": "x", "completion": "a", "label": false, "language": "jw", "harmful": true}\n')
    (row,) = read_preferences(path)
    assert (row.chosen, row.rejected, row.prompt.language) == (None, "a", "jv")


def test_conversational_answers_are_read(tmp_path):
    path = tmp_path / "conversational.jsonl"
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, {"role": "user", "content": "z"}]
    sides = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    path.write_text(json.dumps({"prompt": turns, **sides, "language": "en", "harmful": False}) + "\n")
    (row,) = read_preferences(path)
    assert (list(row.prompt.messages), row.chosen, row.rejected) == (turns, "chosen", "rejected")


def test_a_table_without_types_is_read(tmp_path):
    path = tmp_path / "preferences.csv"
    path.write_text("prompt,chosen,rejected,language,harmful\nx,a,b,en,true\ny,c,,zh,False\n")
    first, second = read_preferences(path)
    assert (first.prompt.harmful, first.chosen, first.rejected) == (True, "a", "b")
    assert (second.prompt.harmful, second.chosen, second.rejected) == (False, "c", None)


def in_languages(*codes):
    return [
        Preference(user_prompt(str(n), code, f"prompt {n}", harmful=True), f"refusal in {code}", "yes")
        for n in range(10)
        for code in codes
    ]


def test_refusals_in_another_language_are_undesirable_for_a_share_of_the_harmful_prompts():
    table = [*in_languages("en", "zh", "ko"), *preferences()]
    wrong = wrong_language_refusals(table, 0.5, seed=0)
    assert len(wrong) == 18  # of 30 here and 6 in the other table
    assert all(one.prompt.harmful and one.chosen is None for one in wrong)
    refused = [one for one in wrong if one.rejected.startswith("refusal in")]
    assert refused and all(not one.rejected.endswith(one.prompt.language) for one in refused)
    assert wrong == wrong_language_refusals(table, 0.5, seed=0)
    assert wrong_language_refusals(table, 0.0, seed=0) == []


def test_one_language_alone_has_no_wrong_language():
    with pytest.raises(DataError, match="harmful rows in 1 language"):
        wrong_language_refusals(in_languages("en"), 0.5, seed=0)
