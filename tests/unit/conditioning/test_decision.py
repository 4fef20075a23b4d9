import math

import pytest

from interpreters import config
from lasa.conditioning.condition import DEFAULT_CONDITION, completion_ids, condition_ids
from lasa.conditioning.decision import Policy, decide
from lasa.errors import RecipeError
from lasa.interpreter.heads import CategoryHead


class TestKindsOfHarm:
    FACTS = config(threshold=0.6, controversial=0.4, categories=CategoryHead(("hate", "self_harm"), threshold=0.7))
    POLICY = Policy(harmful="refuse", controversial="log", categories={"self_harm": "help", "hate": "log"})

    @pytest.mark.parametrize(
        ("score", "kinds", "category", "action"),
        [
            (0.9, (0.1, 0.9), "self_harm", "help"),
            (0.9, (0.9, 0.1), "hate", "log"),
            (0.9, (0.4, 0.6), None, "refuse"),  # not sure enough to name one
            (0.9, (math.nan, 0.9), None, "refuse"),
            (0.9, (), None, "refuse"),
            (math.nan, (0.1, 0.9), "self_harm", "help"),
            (0.5, (0.1, 0.9), "self_harm", "log"),  # the controversial band keeps its own action
            (0.1, (0.1, 0.9), None, "off"),
        ],
    )
    def test_a_kind_that_is_named_has_its_own_action(self, score, kinds, category, action):
        decision = decide(self.FACTS, self.POLICY, score, categories=kinds)
        assert (decision.category, decision.action) == (category, action)
        assert decision.replaced == (action in ("refuse", "help"))
        assert ("most like" in decision.reason) == (category is not None)

    def test_the_probabilities_are_in_the_record_whatever_the_band(self):
        decision = decide(self.FACTS, self.POLICY, 0.1, categories=(0.25, 0.75))
        assert decision.categories == {"hate": 0.25, "self_harm": 0.75}

    def test_an_uncovered_language_decides_before_the_kind(self):
        facts = config(threshold=0.6, categories=self.FACTS.categories, coverage={"sw": "not covered"})
        policy = Policy(uncovered="refuse", categories={"hate": "log"})
        assert decide(facts, policy, 0.9, ["sw"], (0.9, 0.1)).action == "refuse"
        assert decide(facts, policy, 0.9, ["en"], (0.9, 0.1)).action == "log"

    def test_an_interpreter_without_the_head_names_nothing(self):
        decision = decide(config(threshold=0.6), Policy(), 0.9)
        assert decision.category is None and decision.categories == {}


class TestDecide:
    BAND = config(threshold=0.6, controversial=0.4, language_thresholds={"sw": 0.8})

    @pytest.mark.parametrize(
        ("score", "band"),
        [
            (0.0, "benign"), (0.39, "benign"), (0.4, "controversial"), (0.59, "controversial"), (0.6, "harmful"),
            (1.0, "harmful"),
        ],
    )  # fmt: skip
    def test_a_score_falls_into_one_of_three_bands(self, score, band):
        decision = decide(self.BAND, Policy(), score)
        assert decision.band == band
        assert decision.flagged == (band == "harmful")

    def test_without_a_band_everything_below_the_threshold_is_benign(self):
        assert decide(config(threshold=0.6), Policy(), 0.59).band == "benign"

    def test_each_band_has_the_policys_action_and_benign_prompts_none(self):
        policy = Policy(harmful="refuse", controversial="log")
        assert [decide(self.BAND, policy, score).action for score in (0.9, 0.5, 0.1)] == ["refuse", "log", "off"]

    def test_a_languages_own_threshold_replaces_the_global_one(self):
        swahili = decide(self.BAND, Policy(), 0.7, ["sw"])
        assert (swahili.band, swahili.threshold, swahili.language) == ("controversial", 0.8, "sw")
        for languages in (["en"], []):
            other = decide(self.BAND, Policy(), 0.7, languages)
            assert (other.band, other.threshold, other.language) == ("harmful", 0.6, None)

    def test_of_several_languages_the_strictest_threshold_counts(self):
        facts = config(threshold=0.6, language_thresholds={"sw": 0.8, "th": 0.3})
        for languages, threshold, own in ((["sw", "th"], 0.3, "th"), (["sw", "en"], 0.6, None), (["sw"], 0.8, "sw")):
            found = decide(facts, Policy(), 0.5, languages)
            assert (found.threshold, found.language) == (threshold, own)

    def test_the_worst_grade_of_its_languages_is_recorded(self):
        facts = config(coverage={"it": "covered", "bn": "partly", "sw": "not covered"})
        graded = [
            decide(facts, Policy(), 0.1, one).coverage for one in (["it"], ["it", "bn"], ["bn", "sw"], ["fi"], [])
        ]
        assert graded == ["covered", "partly", "not covered", None, None]

    @pytest.mark.parametrize(
        ("uncovered", "actions"),
        [
            ("as_scored", ["condition", "off"]),
            ("refuse", ["refuse", "refuse"]),
            ("log", ["log", "log"]),
            ("answer", ["off", "off"]),
        ],
    )
    def test_in_a_language_that_is_not_covered_the_policy_decides(self, uncovered, actions):
        facts = config(threshold=0.6, coverage={"it": "covered", "sw": "not covered"})
        policy = Policy(uncovered=uncovered)
        assert [decide(facts, policy, score, ["sw"]).action for score in (0.9, 0.1)] == actions
        assert [decide(facts, policy, score, ["it"]).action for score in (0.9, 0.1)] == ["condition", "off"]
        assert ("not covered" in decide(facts, policy, 0.9, ["sw"]).reason) == (uncovered != "as_scored")

    @pytest.mark.parametrize("score", [math.nan, math.inf])
    def test_a_score_that_is_no_number_counts_as_harmful(self, score):
        assert decide(self.BAND, Policy(), score).flagged

    def test_a_decision_says_why(self):
        decision = decide(self.BAND, Policy(), 0.9)
        assert decision.reason == "score 0.9000 is at or above the threshold 0.6000"
        assert (decision.layer, decision.position) == (2, "last")
        assert decide(self.BAND, Policy(), 0.5).reason == "score 0.5000 lies between 0.4000 and 0.6000"
        assert decide(self.BAND, Policy(), 0.1).reason == "score 0.1000 is below the threshold 0.6000"


class TestTokens:
    def test_the_condition_is_its_text_and_nothing_else(self, tokenizer):
        ids = condition_ids(tokenizer)
        assert tokenizer.decode(ids) == DEFAULT_CONDITION
        assert not set(ids) & set(tokenizer.all_special_ids)

    @pytest.mark.parametrize("text", ["", "  ", "Refuse. ", "\nRefuse."])
    def test_a_condition_that_would_merge_with_its_neighbours_is_refused(self, tokenizer, text):
        with pytest.raises(RecipeError, match="white space"):
            condition_ids(tokenizer, text)

    def test_an_answer_ends_with_the_turns_own_terminator(self, tokenizer):
        end = tokenizer.convert_tokens_to_ids("<|end|>")
        ids = completion_ids(tokenizer, "water the plant", [end])
        assert ids[-1] == end
        assert tokenizer.decode(ids[:-1]) == "water the plant"
        assert tokenizer.bos_token_id not in ids
