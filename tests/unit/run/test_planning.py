import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import sdpa_attention
from typer.testing import CliRunner

from lasa.alignment.arguments import trainer_arguments
from lasa.alignment.kernels import training_kernels
from lasa.alignment.rows import TrainingExample
from lasa.alignment.settings import SystemSettings
from lasa.alignment.trainers import make_trainer
from lasa.cli import app
from lasa.data.prompts import user_prompt
from lasa.errors import ModelError
from lasa.models.generation import GenerationSettings, generate, terminators
from lasa.models.hidden_states import DEFAULT_TOKEN_BUDGET, read_hidden_states
from lasa.models.memory import MOST_TOKENS
from lasa.run.planning import GIB, OVERHEAD, activations, aligning, answering, inside_block, plan
from lasa.run.recipe import read_recipe
from lasa.run.settings import Machine, Work
from lasa.run.shape import Shape
from meter import MostAlive, SavedForBackward

LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
QWEN_32B = {
    "model_type": "qwen2", "hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64,
    "num_attention_heads": 40, "num_key_value_heads": 8, "vocab_size": 152064, "tie_word_embeddings": False,
}  # fmt: skip


QWEN_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
}  # fmt: skip


GEMMA_27B = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text", "head_dim": 128, "hidden_size": 5376, "intermediate_size": 21504,
        "num_attention_heads": 32, "num_hidden_layers": 62, "num_key_value_heads": 16, "sliding_window": 1024,
    },
    "vision_config": {
        "model_type": "siglip_vision_model", "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304,
        "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False,
    },
}  # fmt: skip


def test_the_recipe_for_a_model_of_7b_fits_one_gpu():
    recipe = read_recipe(Path(__file__).parents[3] / "recipes" / "qwen2.5-7b-instruct.yaml")
    lasa = recipe.systems["lasa"]
    assert Shape.from_config(QWEN_7B).parameters == 7_615_616_512
    work = Work(row_tokens=lasa.max_length, batch=lasa.batch_size, lora_rank=lasa.lora_rank)
    stages = {stage.name: stage for stage in plan(Shape.from_config(QWEN_7B), Machine(gpus=1), work)}
    assert stages["3  lora, one GPU"].fits


@pytest.mark.parametrize(
    ("config", "parameters"), [(LLAMA_8B, 8_030_261_248), (QWEN_32B, 32_763_876_352), (GEMMA_27B, 27_432_406_640)]
)
def test_published_models_have_their_published_number_of_parameters(config, parameters):
    assert Shape.from_config(config).parameters == parameters


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_model_itself(family, tied):
    config = AutoConfig.for_model(
        family, vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, tie_word_embeddings=tied, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    shape = Shape.from_config(config.to_dict())
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.parameters == shape.layers * shape.block + shape.embedding * (1 if tied else 2) + shape.width
    assert shape.tied is tied


def test_an_adapter_has_the_parameters_that_peft_gives_it():
    from peft import LoraConfig, get_peft_model

    config = AutoConfig.for_model(
        "llama", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    model = get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(r=4, target_modules="all-linear"))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert Shape.from_config(config.to_dict()).lora_parameters(4) == trained


def memory_of(config, gpus, adaptation, sharding, checkpointing=True) -> float:
    return aligning(Shape.from_config(config), Machine(gpus=gpus), Work(), adaptation, sharding, checkpointing).memory


def test_full_training_holds_sixteen_bytes_a_parameter_and_shards_them():
    one, eight = (memory_of(LLAMA_8B, g, "full", s) for g, s in ((1, "one GPU"), (8, "FSDP2 / ZeRO-3")))
    assert one > 16 * 8_030_261_248 / GIB > 119
    assert eight < one / 4


@pytest.mark.parametrize(
    ("config", "gpus", "adaptation", "sharding", "fits"),
    [
        (LLAMA_8B, 1, "full", "one GPU", False),
        (LLAMA_8B, 1, "lora", "one GPU", True),
        (LLAMA_8B, 8, "full", "FSDP2 / ZeRO-3", True),
        (QWEN_32B, 1, "full", "one GPU", False),
        (QWEN_32B, 1, "qlora", "one GPU", True),
        (QWEN_32B, 8, "lora", "FSDP2 / ZeRO-3", True),
        (QWEN_32B, 8, "full", "DDP", False),
        (LLAMA_8B, 1, "full, adamw_8bit", "one GPU", False),
        (LLAMA_8B, 1, "full, adamw_bfloat16", "one GPU", True),
        (GEMMA_27B, 1, "lora", "one GPU", True),
        (GEMMA_27B, 1, "full, adamw_bfloat16", "one GPU", False),
        (GEMMA_27B, 8, "full", "FSDP2 / ZeRO-3", True),
    ],
)
def test_what_fits_on_80_gib(config, gpus, adaptation, sharding, fits):
    assert (memory_of(config, gpus, adaptation, sharding) <= 80) is fits


def test_the_embeddings_moments_stay_in_float32_where_the_others_have_eight_bits():
    shape, names = Shape.from_config(LLAMA_8B), ("full, adamw_8bit", "full, adamw_bfloat16")
    eight, sixteen = (
        memory_of(LLAMA_8B, 1, name, "one GPU") * GIB / OVERHEAD - activations(shape, Work(), name, True)
        for name in names
    )
    assert eight - sixteen == pytest.approx(2 * shape.parameters + 6 * shape.embedding)


def test_checkpointing_trades_time_for_memory():
    shape, work = Shape.from_config(LLAMA_8B), Work()
    assert activations(shape, work, "lora", True) < activations(shape, work, "lora", False) / 5
    with_it, without = (aligning(shape, Machine(), work, "lora", "one GPU", c) for c in (True, False))
    assert with_it.hours > without.hours and with_it.memory < without.memory


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"])
@pytest.mark.parametrize(
    ("adaptation", "changes"),
    [("lora", {"lora_rank": 16}), ("full", {}), ("full, adamw_bfloat16", {"optimizer": "adamw_bfloat16"})],
    ids=["adapter", "all weights", "bfloat16"],
)
def test_activations_are_what_a_step_keeps(family, adaptation, changes, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer), hidden_size=128, intermediate_size=448, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=40, pad_token_id=0,
    )  # fmt: skip
    rows = [TrainingExample([5] * (224 - n), [6] * 32, True, str(n), "en", False) for n in range(8)]
    settings = SystemSettings(method="sft", learning_rate=1e-5, steps=1, batch_size=8, **changes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    trainer = make_trainer(model, tokenizer, rows, settings, trainer_arguments(model, settings, tmp_path, 0))
    compute, kept = trainer.compute_loss, []

    def counted(model, *args, **kwargs):
        with SavedForBackward(besides=model.parameters()) as saved:
            loss = compute(model, *args, **kwargs)
        kept.append(saved.bytes)
        return loss

    monkeypatch.setattr(trainer, "compute_loss", counted)
    training_kernels()(trainer.train)()
    shape, work = Shape.from_config(config.to_dict()), Work(batch=8, row_tokens=256)
    assert 0.9 < kept[0] / activations(shape, work, adaptation, False) < 1.1


@pytest.fixture(params=["llama", "qwen3", "gemma3_text"])
def small(request, tokenizer):
    """A model of a family in bfloat16 whose cache is small beside its blocks."""
    config = AutoConfig.for_model(
        request.param, vocab_size=len(tokenizer), hidden_size=128, intermediate_size=448, num_hidden_layers=8,
        num_attention_heads=4, num_key_value_heads=2, head_dim=40, pad_token_id=0, max_position_embeddings=2048,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight[terminators(model, tokenizer)] = 0  # no answer ends early
    return model


def test_a_batch_that_is_read_holds_what_the_plan_says(small, tokenizer):
    prompts = [user_prompt(str(n), "en", "a" * (110 + n % 9)) for n in range(64)]
    with MostAlive(besides=small.parameters()) as alive:
        read_hidden_states(small, tokenizer, prompts, [1, 3])
    planned = inside_block(Shape.from_config(small.config.to_dict()), DEFAULT_TOKEN_BUDGET)
    assert 0.9 < alive.bytes / planned < OVERHEAD


@pytest.mark.parametrize(("asked", "answered"), [(200, 8), (4, 60)], ids=["long prompts", "long answers"])
def test_a_batch_that_is_answered_holds_what_the_plan_says(small, tokenizer, asked, answered):
    prompts, settings = [[5] * (asked - n % 4) for n in range(64)], GenerationSettings(max_new_tokens=answered)
    with MostAlive(besides=small.parameters()) as alive:
        answers = generate(small, tokenizer, prompts, settings)
    assert all(len(one.token_ids) == answered for one in answers)
    shape, work = Shape.from_config(small.config.to_dict()), Work(prompt_tokens=asked, answer_tokens=answered)
    weights = 2 * shape.parameters
    stage = answering(shape, Machine(), work)
    assert "64 at a time" in stage.name
    # older transformers copies one layer's keys and values for all four heads in each step
    copies = 0 if hasattr(sdpa_attention, "pack_gqa") else 2 * 2 * 64 * (asked + answered) * 4 * 40
    assert 0.9 < alive.bytes / (stage.memory * GIB / OVERHEAD - weights + copies) < OVERHEAD


def test_every_stage_takes_time_and_memory():
    stages = plan(Shape.from_config(LLAMA_8B), Machine(gpus=8), Work())
    assert {stage.name[0] for stage in stages} == {"1", "3", "4"}
    assert all(stage.memory > 0 and stage.hours > 0 for stage in stages)


def test_before_a_model_is_sharded_the_whole_of_it_is_read_on_each_gpu():
    shape, small = Shape.from_config(QWEN_32B), Work(batch=2)
    many = aligning(shape, Machine(gpus=64), small, "lora", "FSDP2 / ZeRO-3", True)
    assert many.memory > 2 * shape.parameters / GIB


def test_a_judge_and_the_cache_are_held_beside_the_model_that_answers():
    shape = Shape.from_config(LLAMA_8B)
    alone, judged = (answering(shape, Machine(gpus=1), Work(judge=size)) for size in (0, 8))
    assert judged.memory - alone.memory == pytest.approx(16e9 * 1.15 / GIB)
    assert "64 at a time" in alone.name


def test_a_batch_of_long_prompts_is_small_and_read_on_one_gpu_at_a_time():
    shape, work = Shape.from_config(LLAMA_8B), Work(prompt_tokens=8000)
    one, eight = (answering(shape, Machine(gpus=gpus), work) for gpus in (1, 8))
    assert one.fits
    assert f"{MOST_TOKENS // (8000 + 256)} at a time" in one.name and one.name == eight.name
    assert eight.memory * GIB / OVERHEAD > inside_block(shape, 7 * 8000) + 2 * shape.parameters / 8


def test_layers_with_a_window_hold_no_more_than_it():
    shape = Shape.from_config(GEMMA_27B)
    token = 2 * 2 * 16 * 128
    assert shape.cache(500) == 62 * 500 * token
    assert shape.cache(4000) == (10 * 4000 + 52 * 1024) * token


def test_weights_in_four_bits_are_not_sharded():
    names = [stage.name for stage in plan(Shape.from_config(QWEN_32B), Machine(gpus=8), Work())]
    assert [name for name in names if "qlora" in name] == ["3  qlora, DDP", "3  qlora, DDP, checkpointing"]
    assert "3  lora, FSDP2 / ZeRO-3" in names


def test_a_model_whose_parameters_are_not_known_is_refused():
    with pytest.raises(ModelError, match="mixture of experts such as mixtral"):
        Shape.from_config({**LLAMA_8B, "model_type": "mixtral", "num_local_experts": 8})
    with pytest.raises(ModelError, match="A strange model is none that transformers can build"):
        Shape.from_config({**LLAMA_8B, "model_type": "strange"})
    with pytest.raises(ModelError, match="no 'hidden_size'"):
        Shape.from_config({key: value for key, value in LLAMA_8B.items() if key != "hidden_size"})


def test_the_command_says_what_fits(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN_32B))
    told = CliRunner().invoke(app, ["plan", "--model", str(tmp_path), "--gpus", "1"])
    assert told.exit_code == 0
    assert "32,763,876,352 parameters on 1 x 80 GiB" in told.output
    assert "Fastest alignment that fits: qlora" in told.output
    found = json.loads(CliRunner().invoke(app, ["plan", "--model", str(tmp_path / "config.json"), "--json"]).output)
    assert found["parameters"] == 32_763_876_352
