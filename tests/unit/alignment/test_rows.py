import random
from itertools import pairwise

import pytest

from lasa.alignment.rows import (
    Preference,
    decisions,
    kl_partners,
    read_preferences,
    separate_partners,
    token_rows,
)
from lasa.conditioning import DEFAULT_CONDITION, condition_ids
from lasa.errors import DataError, RecipeError
from lasa.prompts import user_prompt
from lasa.rendering import render


def preferences(count=12):
    return [
        Preference(user_prompt(str(n), "en", f"how do I paint house {n}", harmful=n % 2 == 0), f"yes {n}", f"no {n}")
        for n in range(count)
    ]


def test_a_row_is_prompt_condition_completion_and_the_templates_terminator(tokenizer):
    one = preferences(1)
    rows = token_rows(tokenizer, one, [True], DEFAULT_CONDITION, seed=0)
    prompt = render(tokenizer, one[0].prompt.messages).token_ids
    good = next(row for row in rows if row.desirable)
    assert good.prompt_ids == prompt + condition_ids(tokenizer)
    assert tokenizer.decode(good.completion_ids) == "yes 0<|end|>"
    assert (good.prompt_ids + good.completion_ids).count(tokenizer.bos_token_id) == 1


def test_condition_and_completion_tokens_never_merge(tokenizer):
    rows = token_rows(tokenizer, preferences(1), [True], "Stop here.", seed=0)
    condition = condition_ids(tokenizer, "Stop here.")
    assert all(row.prompt_ids[-len(condition) :] == condition for row in rows)


@pytest.mark.parametrize("text", ["", " ", "ends in a space ", "\nstarts in one"])
def test_a_condition_that_could_merge_is_refused(tokenizer, text):
    with pytest.raises(RecipeError, match="without white space at its ends"):
        condition_ids(tokenizer, text)


def test_labels_and_prompts_are_mixed(tokenizer):
    rows = token_rows(tokenizer, preferences(50), [False] * 50, DEFAULT_CONDITION, seed=0)
    labels = [row.desirable for row in rows]
    changes = sum(a != b for a, b in pairwise(labels))
    assert changes > 25
    assert sum(a.query_id == b.query_id for a, b in pairwise(rows)) < 10


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("batch", [2, 3, 8])
def test_every_kl_partner_comes_from_another_prompt(tokenizer, seed, batch):
    rows = token_rows(tokenizer, preferences(12), [False] * 12, DEFAULT_CONDITION, seed=seed)
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
    rows = token_rows(tokenizer, preferences(1), [False], DEFAULT_CONDITION, seed=0)
    with pytest.raises(DataError, match="Too few different queries"):
        separate_partners(rows, 2)


def test_the_signal_decides_which_rows_are_conditioned():
    table = preferences(40)
    harmful = [p.prompt.harmful for p in table]
    assert decisions(table, "label") == harmful
    assert decisions(table, "none") == [False] * 40
    coin = decisions(table, "sampled", seed=1)
    assert 0 < sum(coin) < sum(harmful) and not any(c and not h for c, h in zip(coin, harmful, strict=True))
    wrong = [random.Random(0).random() < 0.5 for _ in table]
    assert decisions(table, "interpreter", lambda prompts: wrong) == wrong
    with pytest.raises(DataError, match="needs a trained interpreter"):
        decisions(table, "interpreter")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "", "chosen": "a", "language": "en", "harmful": true}', "row 1, column 'prompt'"),
        ('{"prompt": "x", "language": "en", "harmful": true}', "needs an answer in 'chosen' or 'rejected'"),
        ('{"prompt": "x", "chosen": "a", "language": "xx", "harmful": true}', "row 1, column 'language'"),
        ('{"prompt": "x", "chosen": "a", "language": "en"}', "row 1, column 'harmful'"),
        ('{"prompt": "x", "chosen": " ", "language": "en", "harmful": true}', "column 'chosen': the answer is empty"),
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
