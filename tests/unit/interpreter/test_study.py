import json
from dataclasses import replace

import pytest

from lasa.data.prompt_tables import write_prompts
from lasa.data.prompts import user_prompt
from lasa.data.sources import load_prompts
from lasa.errors import ArtifactError, DataError, ModelError, RecipeError
from lasa.files.artifacts import model_fingerprint, read_json, write_json
from lasa.interpreter.answers import LabelledAnswer
from lasa.interpreter.probe import load_interpreter
from lasa.interpreter.settings import InterpreterSettings
from lasa.interpreter.study import read_point_of, study_interpreter
from lasa.interpreter.tables import load_tables

VERBS = {"water": False, "burn": True}


def table(name, queries, languages=("en", "zh", "sw")):
    """Prompts that say in plain words whether they are harmful."""
    return [
        user_prompt(f"{name}{n}", code, f"{code} {verb} {name} {n} {code}", harmful=harmful, source="world")
        for n, (verb, harmful) in zip(range(queries), list(VERBS.items()) * queries, strict=False)
        for code in languages
    ]


@pytest.fixture
def sources(tmp_path):
    """Files of training, development and test prompts."""
    found = {}
    for name, queries in (("train", 24), ("development", 12), ("test", 12)):
        write_prompts(tmp_path / f"{name}.jsonl", table(name, queries))
        found[name] = str(tmp_path / f"{name}.jsonl")
    return found


def section(sources, **settings):
    values = {
        "train": [sources["train"]], "development": [sources["development"]], "kind": "linear", "epochs": 8, "seeds": 2,
        "perturbations": ["casing", "typos"], "learning_rate": 0.02,
    }  # fmt: skip
    return InterpreterSettings(**{**values, **settings})


def study(llama, tokenizer, tmp_path, sources, tests=None, languages=("en", "zh"), answers=(), **settings):
    chosen = section(sources, **settings)
    tables = load_tables(chosen, languages, {"held out": sources["test"]} if tests is None else tests, 0)
    return study_interpreter(llama, tokenizer, "tiny", 2, "last", tables, chosen, tmp_path / "out", 0, answers=answers)


class TestTables:
    def test_only_seen_languages_are_trained_on_and_all_are_tested(self, sources):
        tables = load_tables(section(sources), ["en", "zh"], {"test": sources["test"]}, 0)
        assert {p.language for p in tables.train} == {p.language for p in tables.development} == {"en", "zh"}
        assert {p.language for p in tables.tests["test"]} == {"en", "zh", "sw"}
        assert {p.language for p in load_tables(section(sources), [], {}, 0).train} == {"en", "zh", "sw"}

    def test_without_a_development_source_queries_are_split_off(self, sources):
        tables = load_tables(section(sources, development=[], development_share=0.25), ["en"], {}, 0)
        assert (len(tables.train), len(tables.development)) == (18, 6)

    def test_perturbed_copies_are_trained_on_and_keep_their_cells(self, sources):
        plain = load_tables(section(sources), ["en", "zh"], {}, 0)
        tables = load_tables(section(sources, perturbed_copies=["casing", "code_switch"]), ["en", "zh"], {}, 0)
        copies = tables.train[len(plain.train) :]
        assert tables.train[: len(plain.train)] == plain.train
        assert {p.details["perturbation"] for p in copies} == {"casing", "code_switch"}
        assert all("sw" not in p.details.get("languages", ()) for p in copies)
        assert tables.development == plain.development

    def test_calibration_prompts_are_the_benign_ones_in_every_language_and_are_audited(self, sources, tmp_path):
        write_prompts(tmp_path / "more.jsonl", table("more", 6, ("en", "sw")))
        more = section(sources, calibration=[str(tmp_path / "more.jsonl")], false_refusals=0.2)
        tables = load_tables(more, ["en"], {"same": str(tmp_path / "more.jsonl")}, 0)
        assert len(tables.calibration) == 6
        assert {(p.language, p.harmful) for p in tables.calibration} == {("en", False), ("sw", False)}
        assert len(tables.audit.leaks) == 6

    def test_the_audit_counts_and_names_what_is_shared(self, sources):
        tables = load_tables(section(sources), ["en"], {"same": sources["train"]}, 0)
        facts = tables.audit.to_json()
        assert {"table": "training data", "language": "en", "source": "world", "label": "harmful", "prompts": 12,
                "queries": 12, "licence": "not stated"} in facts["counts"]  # fmt: skip
        assert facts["duplicates"] == {"exact": 24}
        assert facts["leaks"] == [{"kind": "exact", "source": "world", "evaluation_source": "world", "rows": 24}]

    def test_a_seen_language_that_no_source_has_is_an_error(self, sources):
        with pytest.raises(DataError, match="no prompt labelled harmful or benign in ko"):
            load_tables(section(sources), ["ko"], {}, 0)

    def test_a_test_without_labels_is_left_out_and_one_without_benign_rows_is_not(self, sources, tmp_path):
        write_prompts(tmp_path / "bare.jsonl", [replace(p, harmful=None) for p in table("x", 4)])
        write_prompts(tmp_path / "bad.jsonl", [p for p in table("y", 4) if p.harmful])
        tests = {"bare": str(tmp_path / "bare.jsonl"), "bad": str(tmp_path / "bad.jsonl")}
        tables = load_tables(section(sources), ["en"], tests, 0)
        assert tables.tests["bare"] == [] and len(tables.tests["bad"]) == 6


class TestStudy:
    def test_it_writes_an_interpreter_that_fits_and_everything_that_was_measured(
        self, llama, tokenizer, tmp_path, sources
    ):
        found = study(llama, tokenizer, tmp_path, sources, all_layers=True, false_refusals=0.2, per_language=True,
                      controversial_misses=0.2)  # fmt: skip
        found.save(tmp_path / "out")
        interpreter = load_interpreter(tmp_path / "out" / "interpreter")
        interpreter.check_fits(llama, tokenizer)
        config = interpreter.config
        assert config.read_point.layer == 2 and config.languages == ("en", "zh")
        assert config.parameters == interpreter.num_parameters()
        assert config.parameter_share == pytest.approx(config.parameters / sum(p.numel() for p in llama.parameters()))
        assert set(config.data) == {"train", "development"}
        results = read_json(tmp_path / "out" / "interpreter.json")
        headline = results["benchmarks"]["held out"]
        assert set(headline["languages"]) == {"en", "zh", "sw"}
        assert headline["early_layer"]["layer"] == 1 and headline["late_layer"]["layer"] == 4
        assert headline["unseen"] == config.metrics["unseen"]
        assert headline["ngram_baseline"]["seen"]["balanced_accuracy"]["value"] == 1  # the words give it away
        generalisation = results["generalisation"]
        assert [entry["layer"] for entry in generalisation["layers"]] == [0, 1, 2, 3, 4]
        assert set(generalisation["left_out_languages"]) == {"en", "zh"}
        assert generalisation["left_out_sources"] == {}
        assert set(generalisation["perturbations"]) == {"casing", "typos"}
        assert len(results["facts"]["development"]["losses"]) == 2
        assert {"threshold", "controversial", "language en", "language zh"} == set(
            results["facts"]["development"]["statements"]
        )
        assert "| unseen languages |" in (tmp_path / "out" / "interpreter" / "README.md").read_text("utf-8")

    def test_kinds_of_harm_and_answers_are_heads_of_the_same_interpreter(self, llama, tokenizer, tmp_path, sources):
        kinds = {0: "hate", 1: "crime"}
        for name, queries in (("train", 96), ("development", 24), ("test", 24)):
            asked = table(name, queries)
            labelled = [
                replace(p, category=kinds[number // 3 // 2 % 2]) if p.harmful else p for number, p in enumerate(asked)
            ]
            write_prompts(tmp_path / f"{name}.jsonl", labelled)
        answers = [
            LabelledAnswer(p, "burn it all" if p.harmful else "water it", bool(p.harmful))
            for p in table("answered", 24, ("en", "zh"))
        ]
        asked_in_test = LabelledAnswer(load_prompts(sources["test"])[0], "water it", False)
        found = study(llama, tokenizer, tmp_path, sources, answers=answers)
        found.save(tmp_path / "out")
        config = load_interpreter(tmp_path / "out" / "interpreter").config
        assert config.categories.names == ("crime", "hate") and config.answers.window == 8
        assert config.parameters == found.interpreter.num_parameters()
        assert set(found.results["facts"]["development"]["statements"]) == {"threshold", "kind of harm", "answers"}
        assert found.results["benchmarks"]["held out"]["categories"]["all"]["right"]["n"] == 36
        with pytest.raises(DataError, match="also asked in the evaluation"):
            study(llama, tokenizer, tmp_path / "again", sources, answers=[*answers, asked_in_test])

    def test_the_layer_is_the_given_one_even_where_the_sweep_finds_a_better_one(
        self, llama, tokenizer, tmp_path, sources
    ):
        swept = study(llama, tokenizer, tmp_path / "a", sources, all_layers=True).interpreter
        plain = study(llama, tokenizer, tmp_path / "b", sources).interpreter
        assert swept.config.read_point.layer == plain.config.read_point.layer == 2
        assert swept.config.threshold == plain.config.threshold

    def test_all_layers_come_from_one_read(self, llama, tokenizer, tmp_path, sources, monkeypatch):
        from lasa.interpreter import study as interpreter_study

        reads = []
        whole = interpreter_study.read_to_folder

        def counted(model, tokenizer, prompts, layers, *rest):
            reads.append((len(prompts), list(layers)))
            return whole(model, tokenizer, prompts, layers, *rest)

        monkeypatch.setattr(interpreter_study, "read_to_folder", counted)
        study(llama, tokenizer, tmp_path, sources, all_layers=True, perturbations=[])
        assert reads == [(2 * 24 + 2 * 12 + 3 * 12, [0, 1, 2, 3, 4])]

    def test_benign_calibration_prompts_give_unseen_languages_a_threshold(self, llama, tokenizer, tmp_path, sources):
        write_prompts(tmp_path / "more.jsonl", table("more", 20, ("sw",)))
        found = study(
            llama, tokenizer, tmp_path, sources, calibration=[str(tmp_path / "more.jsonl")], false_refusals=0.2,
            per_language=True,
        )  # fmt: skip
        assert set(found.interpreter.config.language_thresholds) == {"en", "zh", "sw"}
        assert found.interpreter.config.languages == ("en", "zh")
        assert set(found.interpreter.config.data) == {"train", "development", "calibration"}

    def test_the_same_seed_gives_the_same_interpreter(self, llama, tokenizer, tmp_path, sources):
        first, second = (study(llama, tokenizer, tmp_path / name, sources) for name in "ab")
        assert json.dumps(first.results) == json.dumps(second.results)

    def test_leaked_queries_are_refused_unless_allowed(self, llama, tokenizer, tmp_path, sources):
        tests = {"leaky": sources["development"]}
        with pytest.raises(DataError, match=r"24 of 72 training rows .* are also asked in the evaluation"):
            study(llama, tokenizer, tmp_path, sources, tests)
        allowed = study(llama, tokenizer, tmp_path, sources, tests, leaks="allow")
        assert allowed.results["audit"]["leaks"][0]["rows"] == 24

    def test_leaked_queries_can_be_left_out_of_training(self, tmp_path, sources):
        asked = load_prompts(sources["train"])[:3]
        write_prompts(tmp_path / "asked.jsonl", [replace(p, query_id=f"asked {p.query_id}") for p in asked])
        tables = load_tables(section(sources, leaks="drop"), ["en", "zh"], {"t": str(tmp_path / "asked.jsonl")}, 0)
        leaked = {p.query_id for p in asked}
        assert not leaked & {p.query_id for p in tables.train} and tables.audit.leaks == []
        kept = load_tables(section(sources, leaks="allow"), ["en", "zh"], {"t": str(tmp_path / "asked.jsonl")}, 0)
        assert len(kept.train) - len(tables.train) == sum(p.query_id in leaked for p in kept.train)

    def test_a_development_text_that_was_trained_on_is_refused(self, llama, tokenizer, tmp_path, sources):
        train = table("train", 24)
        renamed = [replace(p, query_id=f"other {p.query_id}") for p in train[:2]]
        write_prompts(tmp_path / "renamed.jsonl", [*table("development", 12), *renamed])
        with pytest.raises(DataError, match="2 development prompts are in the training data"):
            study(llama, tokenizer, tmp_path, {**sources, "development": str(tmp_path / "renamed.jsonl")})

    def test_without_a_test_there_is_an_interpreter_and_no_sweep(self, llama, tokenizer, tmp_path, sources):
        found = study(llama, tokenizer, tmp_path, sources, {})
        assert found.results["benchmarks"] == {}
        assert found.results["generalisation"]["left_out_languages"]["en"]["rows"] == "development"
        with pytest.raises(RecipeError, match="needs labelled test prompts"):
            study(llama, tokenizer, tmp_path, sources, {}, all_layers=True)


class TestReadPoint:
    def test_a_bottleneck_gives_layer_and_position(self, llama, tmp_path):
        path = tmp_path / "bottleneck.json"
        write_json(path, {"layer": 3, "layers": [], "position": "last_user"})
        assert read_point_of(llama, path, None, None) == (3, "last_user")
        write_json(path, {"layer": 3, "used_layer": 2, "layers": [], "position": "last"})
        assert read_point_of(llama, path, None, None) == (2, "last")
        assert read_point_of(llama, None, 0, None) == (0, "last")
        assert read_point_of(llama, None, 1, "mean_user") == (1, "mean_user")

    def test_a_bottleneck_of_another_model_is_refused(self, llama, tmp_path):
        path = tmp_path / "bottleneck.json"
        content = {
            "layer": 3,
            "layers": [],
            "position": "last",
            "provenance": {"fingerprint": model_fingerprint(llama)},
        }
        write_json(path, content)
        assert read_point_of(llama, path, None, None) == (3, "last")
        write_json(path, {**content, "provenance": {"fingerprint": "other"}})
        with pytest.raises(ArtifactError, match="found on another model"):
            read_point_of(llama, path, None, None)

    def test_a_search_that_found_no_bottleneck_says_so(self, llama, tmp_path):
        write_json(tmp_path / "none.json", {"layer": None, "layers": [], "verdict": "No layer stands out."})
        with pytest.raises(ArtifactError, match=r"No layer stands out\. Choose with --layer"):
            read_point_of(llama, tmp_path / "none.json", None, None)
        write_json(tmp_path / "other.json", {"threshold": 1})
        with pytest.raises(ArtifactError, match=r"is not a bottleneck\.json"):
            read_point_of(llama, tmp_path / "other.json", None, None)

    def test_one_of_the_two_must_be_given_and_must_exist(self, llama, tmp_path):
        with pytest.raises(RecipeError, match="either --bottleneck"):
            read_point_of(llama, None, None, None)
        with pytest.raises(RecipeError, match="either --bottleneck"):
            read_point_of(llama, tmp_path / "x.json", 2, None)
        with pytest.raises(ModelError, match="Layer 9 does not exist"):
            read_point_of(llama, None, 9, None)
        with pytest.raises(RecipeError, match="no token position 'first'"):
            read_point_of(llama, None, 2, "first")


def test_thresholds_by_language_need_a_target(sources):
    with pytest.raises(ValueError, match="need a target"):
        section(sources, per_language=True)


class TestCoverage:
    def test_languages_are_graded_on_parallel_sentences_and_the_grades_are_sealed(
        self, llama, tokenizer, tmp_path, sources
    ):
        write_prompts(tmp_path / "sentences.jsonl", [replace(p, harmful=None) for p in table("sentence", 40)])
        found = study(llama, tokenizer, tmp_path, sources, parallel=[str(tmp_path / "sentences.jsonl")])
        graded = found.results["coverage"]["languages"]
        assert set(graded) == {"en", "zh", "sw"} and graded["sw"]["auroc"]["n"] == 12
        found.save(tmp_path)
        kept = load_interpreter(tmp_path / "interpreter").config.coverage
        assert kept == {code: one["grade"] for code, one in graded.items()}
