import json

import pytest

from lasa import progress
from lasa.data import sources
from lasa.data.sources import load_each, load_joined, load_prompts, named_sources, source_hash
from lasa.errors import DataError


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "questions.csv"
    path.write_text("key,text,lang\na,Is tea hot?,en\na,Chai ni moto?,sw\n", encoding="utf-8")
    return path


def test_a_files_columns_are_declared_behind_a_question_mark(table):
    prompts = load_prompts(f"{table}?prompt=text&language=lang&query_id=key&label=benign")
    assert [(p.query_id, p.language, p.text, p.harmful) for p in prompts] == [
        ("a", "en", "Is tea hot?", False),
        ("a", "sw", "Chai ni moto?", False),
    ]


def test_the_columns_of_a_wide_table_are_a_list(tmp_path):
    path = tmp_path / "wide.jsonl"
    path.write_text(json.dumps({"key": "a", "en": "tea", "it": "tè", "sw": "chai"}), encoding="utf-8")
    assert [p.language for p in load_prompts(f"{path}?languages=en,sw&query_id=key")] == ["en", "sw"]


def test_one_language_for_a_whole_table(tmp_path):
    path = tmp_path / "plain.jsonl"
    path.write_text(json.dumps({"prompt": "chai"}), encoding="utf-8")
    assert load_prompts(f"{path}?in_language=sw")[0].language == "sw"


def test_a_dataset_of_the_hub_is_a_source(monkeypatch):
    asked = {}
    monkeypatch.setattr(sources, "load_from_hub", lambda name, **rest: asked.update(name=name, **rest) or [])
    load_prompts("hf:owner/name?split=test[:10]&config=swahili&revision=abc&prompt=q&in_language=sw&label=harmful")
    columns = asked.pop("columns")
    assert columns.prompt == "q" and columns.category == "category"
    assert asked == {
        "name": "owner/name", "split": "test[:10]", "config": "swahili", "revision": "abc", "language": "sw",
        "harmful": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("declared", "message"),
    [("colum=text", "cannot declare 'colum'; choose of prompt, language"), ("text", "cannot declare 'text'"),
     ("split=test", "cannot declare 'split'"), ("label=maybe", "harmful or benign, not 'maybe'"),
     ("prompt=nothing", "no column 'nothing'")],
)  # fmt: skip
def test_what_cannot_be_declared_is_named(table, declared, message):
    with pytest.raises(DataError, match=message):
        load_prompts(f"{table}?{declared}")


def test_sources_are_called_by_a_short_name_each():
    given = ["embedded:hard", "xstest:some/where", "hf:owner/name?split=test", "data/mine.csv?prompt=a.b", "mine.jsonl"]
    assert list(named_sources(given)) == ["hard", "xstest", "name", "data/mine.csv?prompt=a.b", "mine.jsonl"]


class TestJoined:
    def write(self, folder, name, *rows):
        path = folder / name
        path.write_text("query_id,prompt,language\n" + "".join(f"{q},text {q},{code}\n" for q, code in rows))
        return path

    def test_several_sources_are_one_table(self, tmp_path):
        one, two = self.write(tmp_path, "a.csv", ("a", "en")), self.write(tmp_path, "b.csv", ("b", "en"), ("b", "sw"))
        assert [p.query_id for p in load_prompts(f"{one} + {two}")] == ["a", "b", "b"]
        assert load_joined([str(one), str(two)]) == load_prompts(f"{one} + {two}")
        assert load_joined([]) == []
        assert list(named_sources([f"{one} + {two}", f"mine={one}"])) == ["a+b", "mine"]
        assert source_hash(f"{one} + {two}") not in (source_hash(str(one)), source_hash(str(two)), None)

    def test_translations_in_two_of_them_are_one_question_of_one_source(self, tmp_path):
        one, two = self.write(tmp_path, "a.csv", ("a", "en")), self.write(tmp_path, "b.csv", ("a", "sw"), ("c", "sw"))
        found = [(p.source, p.query_id, p.language) for p in load_prompts(f"{one} + {two}")]
        assert found == [("a", "a", "en"), ("a", "a", "sw"), ("b", "c", "sw")]

    def test_two_that_look_like_translations_and_are_not_joined_are_named(self, tmp_path, monkeypatch):
        said = []
        monkeypatch.setattr(progress, "say", said.append)
        one, two = self.write(tmp_path, "a.csv", ("a", "en")), self.write(tmp_path, "b.csv", ("a", "sw"), ("c", "sw"))
        other, same = (
            self.write(tmp_path, "c.csv", ("d", "th")),
            self.write(tmp_path, "d.csv", ("a", "en"), ("a", "th")),
        )
        found = load_each([str(one), str(two), str(other)])
        assert [p.question for p in found] == [("a", "a"), ("b", "a"), ("b", "c"), ("c", "d")]
        assert len(said) == 1
        assert said[0].startswith(f"{one} and {two} share 1 query ids and no language.")
        assert f"'{one} + {two}'" in said[0]
        load_each([str(one), str(same)])
        load_each([str(one), str(two)])  # by a later stage
        assert len(said) == 1

    def test_a_question_that_is_in_two_of_them_is_refused(self, tmp_path):
        one, two = self.write(tmp_path, "a.csv", ("a", "en")), self.write(tmp_path, "b.csv", ("a", "en"))
        with pytest.raises(DataError, match=r"Query 'a' is in .*rename them"):
            load_prompts(f"{one} + {two}")

    def test_two_of_one_name_are_refused(self):
        with pytest.raises(DataError, match="Two sources have the name 'x'"):
            named_sources(["x=a.csv", "x=b.csv"])


class TestChosenByHash:
    def test_the_same_questions_are_chosen_in_every_language(self, tmp_path):
        path = tmp_path / "wide.jsonl"
        path.write_text(
            "".join(json.dumps({"id": f"q{n}", "en": f"tea {n}", "sw": f"chai {n}"}) + "\n" for n in range(40))
        )
        chosen = load_prompts(f"{path}?questions=5")
        queries = {code: [p.query_id for p in chosen if p.language == code] for code in ("en", "sw")}
        assert queries["en"] == queries["sw"] and len(set(queries["en"])) == 5
        assert queries["en"] != [f"q{n}" for n in range(5)]
        assert chosen == load_prompts(f"{path}?questions=5")
        assert {p.query_id for p in chosen} <= {p.query_id for p in load_prompts(f"{path}?questions=6")}

    def test_a_table_that_is_not_parallel_keeps_as_many_of_each_language(self, tmp_path):
        rows = [{"query_id": f"{code}{n}", "language": code, "prompt": "x"} for code in ("en", "sw") for n in range(9)]
        path = tmp_path / "long.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        chosen = load_prompts(f"{path}?questions=4")
        assert [p.language for p in chosen] == ["en"] * 4 + ["sw"] * 4
        assert len(load_prompts(f"{path}?questions=100")) == 18

    def test_a_corpus_is_chosen_from_as_well(self, tmp_path):
        path = tmp_path / "MultiJail.csv"
        path.write_text("id,source,tags,en,sw\n" + "".join(f"{n},s,['t'],tea {n},chai {n}\n" for n in range(9)))
        assert len(load_prompts(f"multijail:{path}?questions=3")) == 6
        assert load_prompts(f"multijail:{path}?questions=3")[0].source == "multijail"

    @pytest.mark.parametrize("number", ["", "0x3", "many", "-1"])
    def test_what_is_no_number_is_refused(self, number, table):
        with pytest.raises(DataError, match="questions is a number from 1"):
            load_prompts(f"{table}?prompt=text&language=lang&questions={number}")
