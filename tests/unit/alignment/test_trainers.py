"""Training on token rows."""

import copy
import math
from contextlib import nullcontext

import pytest
import torch
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from conftest import build_model
from lasa.alignment import methods, objectives, trainers
from lasa.alignment.arguments import trainer_arguments
from lasa.alignment.callbacks import HelpfulnessFloor
from lasa.alignment.consistency import Consistency
from lasa.alignment.rows import token_rows
from lasa.alignment.settings import SystemSettings
from lasa.alignment.trainers import make_trainer, train
from lasa.conditioning.condition import condition_ids
from lasa.data.preferences import Preference
from lasa.data.prompts import user_prompt
from lasa.errors import RecipeError


@pytest.fixture
def rows(tokenizer):
    table = [
        Preference(user_prompt(str(n), "en", f"how do I paint house {n}", harmful=n % 2 == 0), f"yes {n}", f"no {n}")
        for n in range(8)
    ]
    condition = condition_ids(tokenizer)
    return token_rows(tokenizer, table, [condition if p.prompt.harmful else [] for p in table], seed=0)


def settings(method: str, **changes) -> SystemSettings:
    return SystemSettings(method=method, learning_rate=5e-3, steps=6, batch_size=4, warmup_steps=1, **changes)


def log_probability(model, row) -> float:
    ids = torch.tensor([row.prompt_ids + row.completion_ids])
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].log_softmax(-1)
    start = len(row.prompt_ids) - 1
    return float(logits[range(start, start + len(row.completion_ids)), row.completion_ids].sum())


@pytest.mark.parametrize("method", ["sft", "kto", "dpo"])
def test_training_prefers_desirable_answers(method, rows, tokenizer, tmp_path):
    model = build_model("llama", tokenizer, layers=2)
    before = copy.deepcopy(model)
    trained = train(model, tokenizer, rows, settings(method), tmp_path, "test").model

    def margin(network) -> float:
        return sum(log_probability(network, r) * (1 if r.desirable else -1) for r in rows)

    def desirable(network) -> float:
        return sum(log_probability(network, r) for r in rows if r.desirable)

    if method == "sft":
        assert desirable(trained) > desirable(before)
    else:
        assert margin(trained) > margin(before)


@pytest.mark.parametrize("method", ["sft", "kto", "dpo"])
def test_attention_of_cudnn_whose_gradients_become_nan_takes_no_part(method, rows, tokenizer, tmp_path):
    model, allowed = build_model("llama", tokenizer, layers=2), set()

    def note(*_) -> None:
        if torch.is_grad_enabled():
            allowed.add(torch.backends.cuda.cudnn_sdp_enabled())

    model.model.layers[0].register_forward_pre_hook(note)
    train(model, tokenizer, rows, settings(method), tmp_path, "test")
    assert allowed == {False}
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("method", ["sft", "kto", "dpo"])
def test_the_head_scores_answers_alone(method, rows, tokenizer, tmp_path, monkeypatch):
    scored, answered, score = [], max(len(row.completion_ids) for row in rows), ChunkedLogProbFunction.forward

    def note(ctx, hidden, *args):
        scored.append(len(hidden))
        return score(ctx, hidden, *args)

    monkeypatch.setattr(ChunkedLogProbFunction, "forward", note)
    train(build_model("llama", tokenizer, layers=2), tokenizer, rows, settings(method), tmp_path, "test")
    batch = 8 if method == "dpo" else 4  # both answers of a pair
    assert scored and max(scored) <= batch * answered < batch * min(len(row.prompt_ids) for row in rows)


def test_lora_leaves_the_base_weights_alone(rows, tokenizer, tmp_path):
    model = build_model("llama", tokenizer, layers=2)
    before = copy.deepcopy(model.state_dict())
    trained = train(model, tokenizer, rows, settings("kto", lora_rank=2), tmp_path, "test").model
    base = {
        k.replace(".base_layer", ""): v for k, v in trained.get_base_model().state_dict().items() if "lora" not in k
    }
    assert all(torch.equal(before[name], base[name]) for name in before)


@pytest.mark.parametrize(("adapter", "dtype"), [({}, torch.float32), ({"lora_rank": 2}, torch.bfloat16)])
def test_a_model_is_handed_over_before_a_trainer_shards_it(adapter, dtype, rows, tokenizer, tmp_path, monkeypatch):
    order = []
    for module in (trainers, methods):
        monkeypatch.setattr(module, "sharding", lambda: True)
    monkeypatch.setattr(trainers, "hand_over", lambda model, dtype: order.append(dtype))
    monkeypatch.setattr(methods, "TokenizedSFTTrainer", lambda **given: order.append("trainer"))
    model, system = build_model("llama", tokenizer, layers=1).to(torch.bfloat16), settings("sft", **adapter)
    make_trainer(model, tokenizer, rows, system, trainer_arguments(model, system, tmp_path, 0))
    assert order == [dtype, "trainer"]


def test_kto_with_single_rows_is_refused(rows, tokenizer, tmp_path):
    model = build_model("llama", tokenizer, layers=2)
    with pytest.raises(RecipeError, match="at least 2"):
        train(model, tokenizer, rows, SystemSettings(method="kto", batch_size=1), tmp_path, "test")


def test_sft_without_desirable_answers_is_refused(rows, tokenizer, tmp_path):
    bad = [row for row in rows if not row.desirable]
    with pytest.raises(RecipeError, match="needs desirable answers"):
        train(build_model("llama", tokenizer, layers=2), tokenizer, bad, settings("sft"), tmp_path, "test")


@pytest.mark.parametrize("method", ["sft", "kto", "dpo"])
def test_rows_without_room_for_an_answer_are_left_out(method, rows, tokenizer, tmp_path, monkeypatch):
    """Nothing of them is learned, and a batch of them alone has no loss."""
    long = [
        Preference(user_prompt(str(n), "en", "how do I paint the house " * 20, harmful=True), "yes", "no")
        for n in range(20, 30)
    ]
    rows = [*token_rows(tokenizer, long, [[]] * 10, seed=0), *rows]
    longest = max(len(row.prompt_ids + row.completion_ids) for row in rows[20:])
    told: list[str] = []
    monkeypatch.setattr("lasa.alignment.trainers.say", told.append)
    model = build_model("llama", tokenizer, layers=2)
    trained = train(model, tokenizer, rows, settings(method, max_length=longest, answer_weight=0.1), tmp_path, "test")
    assert all(math.isfinite(loss) for loss in trained.losses)
    if method != "sft":
        assert len(trained.trainer.train_dataset) == (16 if method == "kto" else 8)
    assert "20 of 36 rows have no room for an answer and are left out, and 0 answers are cut" in told[0]


def test_a_length_that_no_answer_fits_into_is_refused(rows, tokenizer, tmp_path):
    with pytest.raises(RecipeError, match="Raise max_length"):
        train(build_model("llama", tokenizer, layers=2), tokenizer, rows, settings("sft", max_length=8), tmp_path, "t")


ADAPTER = {"lora_rank": 2, "lora_alpha": 8.0, "lora_dropout": 0.1, "lora_targets": ["q_proj", "up_proj"]}


def test_an_adapter_has_the_scale_dropout_and_maps_that_were_asked_for(rows, tokenizer, tmp_path):
    model = build_model("llama", tokenizer, layers=2)
    trained = train(model, tokenizer, rows, settings("sft", **ADAPTER), tmp_path, "test").model
    layers = {n: m for n, m in trained.named_modules() if hasattr(m, "lora_A")}
    assert {name.rpartition(".")[2] for name in layers} == {"q_proj", "up_proj"}
    assert {layer.scaling["default"] for layer in layers.values()} == {4.0}
    assert {layer.lora_dropout["default"].p for layer in layers.values()} == {0.1}


def test_maps_that_a_model_has_not_are_named(rows, tokenizer, tmp_path):
    model = build_model("llama", tokenizer, layers=2)
    with pytest.raises(RecipeError, match=r"no adapter can be put onto lora_targets=.*wrong"):
        train(model, tokenizer, rows, settings("sft", lora_rank=2, lora_targets=["wrong"]), tmp_path, "test")


def test_weights_of_rows_and_the_decay_reach_the_trainer(rows, tokenizer, tmp_path):
    model = build_model("llama", tokenizer, layers=2)
    chosen = settings("kto", desirable_weight=2.0, undesirable_weight=0.5, weight_decay=0.1)
    trainer = train(model, tokenizer, rows, chosen, tmp_path, "test").trainer
    assert (trainer.desirable_weight, trainer.undesirable_weight, trainer.args.weight_decay) == (2.0, 0.5, 0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "sft", "desirable_weight": 2.0}, "belong to the method kto"),
        ({"method": "sft", "lora_dropout": 0.1}, "belong to an adapter: set lora_rank"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SystemSettings(**changes)


@pytest.mark.parametrize(
    ("capability", "dtype", "expected"),
    [
        ("avx512_bf16", "bfloat16", True),
        ("amx_bf16", "bfloat16", True),
        ("avx2", "bfloat16", False),
        ("avx512_bf16", "float32", False),
    ],
)
def test_a_cpu_that_multiplies_bfloat16_itself_trains_in_it(
    capability, dtype, expected, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True}, raising=False)
    model = build_model("llama", tokenizer, layers=2).to(getattr(torch, dtype))
    arguments = trainer_arguments(model, settings("kto"), tmp_path, 0)
    assert (arguments["bf16"], arguments["use_cpu"]) == (expected, expected)


@pytest.mark.parametrize("method", ["sft", "kto", "dpo"])
@pytest.mark.parametrize("adapter", [{}, {"lora_rank": 2}], ids=["all", "adapter"])
def test_training_in_bfloat16_stays_finite_on_answers_that_are_nearly_impossible(
    method, adapter, rows, tokenizer, tmp_path, monkeypatch
):
    """Log-probabilities of hundreds below zero, as of answers behind a condition that the base would not give."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    model = build_model("llama", tokenizer, layers=2)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(64)
    assert min(log_probability(model, row) for row in rows) < -300
    chosen = settings(method, **adapter, **({"answer_weight": 0.5} if method == "kto" else {}))
    trained = train(model.bfloat16(), tokenizer, rows, chosen, tmp_path, "test")
    assert trained.trainer.args.bf16 or torch.cuda.is_available()
    assert all(math.isfinite(loss) for loss in trained.losses)
    assert all(bool(torch.isfinite(p).all()) for p in trained.model.parameters())


@pytest.mark.parametrize("method", ["sft", "kto", "dpo"])
@pytest.mark.parametrize("behind", [False, True], ids=["everywhere", "behind the condition"])
def test_an_adapter_reads_what_its_map_reads_and_keeps_no_copy_of_it(
    method, behind, rows, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    place = {"adapter": "behind_condition", "signal": "always", "guarded": True} if behind else {}
    ids, read, answered = torch.tensor([rows[0].prompt_ids]), {"step": set(), "between": set()}, []

    def adapter_after_training(name: str):
        where = ["step"]

        def measure(model) -> float:  # an answer amid the training: no autocast makes types agree there
            where[0] = "between"
            acting = model.activation if behind else None
            if acting:
                acting.mask = torch.ones(1, 1, dtype=torch.bool)
            answered.append(model.get_base_model()(ids.to(model.device)).logits)
            where[0] = "step"
            return 1.0

        def note(module, given) -> None:
            read[where[0]].add(given[0].dtype)

        make = trainers.make_trainer

        def watched(*args):
            trainer = make(*args)
            for path, module in trainer.model.named_modules():
                if ".lora_A." in path:
                    module.register_forward_pre_hook(note)
            return trainer

        model = build_model("llama", tokenizer, layers=2).bfloat16()
        floor = HelpfulnessFloor(measure, 0.5, every=1, stop=True)
        with monkeypatch.context() as patch:
            patch.setattr(trainers, "make_trainer", watched)
            chosen, condition = settings(method, lora_rank=2, **place), condition_ids(tokenizer)
            parallel = Consistency(1.0, 1, [[[5, 6, 7], [8, 9]], [[5, 6], [8, 9, 10]]]) if method == "kto" else None
            trained = train(
                model,
                tokenizer,
                rows,
                chosen,
                tmp_path / name,
                name,
                floor=floor,
                condition=condition,
                consistency=parallel,
            )
        return {name: weight for name, weight in trained.model.state_dict().items() if "lora" in name}

    ours = adapter_after_training("ours")
    assert read == {"step": {torch.bfloat16}, "between": {torch.float32}}
    assert len(answered) == 6
    monkeypatch.setattr(objectives, "disable_input_dtype_casting", lambda *args, **kwargs: nullcontext())
    theirs = adapter_after_training("theirs")
    assert torch.float32 in read["step"]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
