import copy
import dataclasses
import random

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from conftest import build_model
from guards import build_guard, conversations
from lasa.data.prompts import user_prompt
from lasa.errors import ArtifactError, DataError, ModelError
from lasa.files.artifacts import model_fingerprint
from lasa.models import hidden_states
from lasa.models.checks import check_readable
from lasa.models.generation import GenerationSettings
from lasa.models.hidden_states import StoredStates, read_hidden_states, read_to_folder
from lasa.models.loading import load_model
from lasa.models.rendering import render
from meter import Operations


def test_states_equal_output_hidden_states_of_each_prompt_alone(any_model, tokenizer, prompts):
    states = read_hidden_states(any_model, tokenizer, prompts, [0, 1, 2, 3])
    for row, prompt in enumerate(prompts):
        ids = torch.tensor([render(tokenizer, prompt.messages).token_ids])
        expected = any_model(ids, output_hidden_states=True).hidden_states
        for layer in range(4):
            torch.testing.assert_close(states[row, layer], expected[layer][0, -1], atol=1e-4, rtol=1e-4)


def test_prompts_are_tokenized_many_at_a_time(llama, tokenizer, prompts, monkeypatch):
    whole, sizes, expected = hidden_states.render_each, [], read_hidden_states(llama, tokenizer, prompts, [2])

    def counted(tokenizer, conversations):
        sizes.append(len(conversations))
        return whole(tokenizer, conversations)

    monkeypatch.setattr(hidden_states, "TOKENIZED", 4)
    monkeypatch.setattr(hidden_states, "render_each", counted)
    assert torch.equal(read_hidden_states(llama, tokenizer, prompts, [2]), expected)
    assert max(sizes) == 4 and sum(sizes) == len(prompts) and len(sizes) == -(-len(prompts) // 4)


@pytest.mark.parametrize("position", ["last", "mean_user"])
def test_further_layers_neither_wait_for_the_device_nor_send_it_anything(position, tokenizer, prompts):
    model, counts = build_model("llama", tokenizer), []
    for layers in ([4], [0, 1, 2, 3, 4]):
        with Operations() as operations:
            read_hidden_states(model, tokenizer, prompts, layers, position)
        waits = ("aten.is_nonzero", "aten._local_scalar_dense", "aten.item", "aten.lift_fresh")
        counts.append([operations.calls[name] for name in waits])
    assert counts[0] == counts[1] and counts[0][-1] > 0


LINEAR = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SPECIAL_BLOCKS = {
    "experts": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "experts of qwen": ("qwen3_moe", EXPERTS),
    "sliding windows": ("gemma2", {"sliding_window": 8}),
    "sliding windows throughout": ("gemma3_text", {"sliding_window": 8}),
    "sliding windows and experts": ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}),
    "linear attention": ("qwen3_5_text", LINEAR),
    "linear attention and experts": ("qwen3_next", {**LINEAR, **EXPERTS, "shared_expert_intermediate_size": 32}),
    "convolutions": ("lfm2", {"layer_types": ["conv", "full_attention", "conv", "full_attention"]}),
}


@pytest.fixture(scope="module", params=SPECIAL_BLOCKS)
def special_model(request, tokenizer):
    family, settings = SPECIAL_BLOCKS[request.param]
    return build_model(family, tokenizer, **settings)


def test_special_blocks_are_read_like_any_other(special_model, tokenizer, prompts):
    together = read_hidden_states(special_model, tokenizer, prompts, [0, 1, 2, 3, 4])
    for row, prompt in enumerate(prompts):
        ids = torch.tensor([render(tokenizer, prompt.messages).token_ids])
        expected = special_model(ids, output_hidden_states=True).hidden_states
        for layer in range(4):
            torch.testing.assert_close(together[row, layer], expected[layer][0, -1], atol=1e-4, rtol=1e-4)
        alone = read_hidden_states(special_model, tokenizer, [prompt], [4])[0, 0]
        torch.testing.assert_close(together[row, 4], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("position", ["last", "last_user", "mean_user"])
def test_what_the_guard_scores_while_answering_is_what_training_reads(position, special_model, tokenizer, prompts):
    guard = build_guard(special_model, tokenizer, prompts, position=position, flagged=0)
    answers = guard.generate(conversations(prompts), GenerationSettings(max_new_tokens=2))
    states = read_hidden_states(special_model, tokenizer, prompts, [guard.layer], position)[:, 0]
    expected = guard.interpreter.probability(states)
    assert expected.std() > 1e-3
    torch.testing.assert_close(torch.tensor([a.decision.score for a in answers]), expected, atol=1e-4, rtol=0)


def test_every_causal_model_is_readable(any_model, tokenizer):
    check_readable(any_model, tokenizer)


def test_special_blocks_are_readable_in_half_precision_too(special_model, tokenizer):
    check_readable(special_model, tokenizer)
    check_readable(copy.deepcopy(special_model).to(torch.bfloat16), tokenizer)


def test_states_are_kept_in_the_models_own_precision(tokenizer, prompts, tmp_path):
    model = build_model("llama", tokenizer).to(torch.bfloat16)
    stored = read_to_folder(model, tokenizer, prompts, [1, 4], tmp_path / "states")
    assert {shard.dtype for shard in stored.shards()} == {torch.bfloat16}
    states = read_hidden_states(model, tokenizer, prompts, [1, 4])
    assert states.dtype == torch.float32 and torch.equal(stored.all(), states)
    ids = torch.tensor([render(tokenizer, prompts[0].messages).token_ids])
    expected = model(ids, output_hidden_states=True).hidden_states[1][0, -1].float()
    torch.testing.assert_close(states[0, 0], expected, atol=3e-2, rtol=3e-2)


OFFLOADED = {
    "model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk",
    "model.layers.2": "disk", "model.layers.3": "cpu", "model.norm": "cpu", "lm_head": "cpu",
}  # fmt: skip


@pytest.mark.parametrize("device_map", ["cpu", OFFLOADED], ids=["cpu", "offloaded"])
def test_a_model_spread_by_a_device_map_is_read_and_recognised(
    device_map, llama, model_folder, tokenizer, prompts, tmp_path
):
    model = AutoModelForCausalLM.from_pretrained(model_folder, device_map=device_map, offload_folder=tmp_path / "off")
    expected = read_hidden_states(llama, tokenizer, prompts, [0, 2, 4])
    torch.testing.assert_close(read_hidden_states(model, tokenizer, prompts, [0, 2, 4]), expected)
    assert model_fingerprint(model) == model_fingerprint(llama)


def test_a_model_quantised_to_four_bits_is_read_guarded_and_recognised(tokenizer, prompts, tmp_path):
    whole = build_model("llama", tokenizer, hidden_size=64, head_dim=16)
    whole.save_pretrained(tmp_path / "whole")
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    quantised = AutoModelForCausalLM.from_pretrained(
        tmp_path / "whole", quantization_config=settings, device_map="cpu", dtype=torch.float32
    )
    quantised.save_pretrained(tmp_path / "quantised")
    tokenizer.save_pretrained(tmp_path / "quantised")
    model, _ = load_model(str(tmp_path / "quantised"))
    assert type(model.get_decoder().layers[0].mlp.up_proj).__name__ == "Linear4bit"
    again, _ = load_model(str(tmp_path / "quantised"))
    assert model_fingerprint(model) == model_fingerprint(again) != model_fingerprint(whole)
    together = read_hidden_states(model, tokenizer, prompts, [0, 2, 4])
    alone = torch.cat([read_hidden_states(model, tokenizer, [prompt], [0, 2, 4]) for prompt in prompts])
    close = 0.02 if has_avx512bf16() else 1e-4  # there it multiplies in bfloat16, and 1e-7 less is another number
    torch.testing.assert_close(together, alone, atol=close, rtol=close)
    unquantised = read_hidden_states(whole, tokenizer, prompts, [0, 2, 4])
    assert torch.cosine_similarity(together, unquantised, dim=-1).min() > 0.9
    guard = build_guard(model, tokenizer, prompts)
    scores = guard.interpreter.probability(together[:, 1])
    answers = guard.generate(conversations(prompts), GenerationSettings(max_new_tokens=2))
    torch.testing.assert_close(torch.tensor([a.decision.score for a in answers]), scores, atol=close, rtol=0)


@pytest.mark.parametrize("budget", [1, 60, 100_000])
def test_a_state_does_not_depend_on_batch_size_or_neighbours(any_model, tokenizer, prompts, budget):
    expected = read_hidden_states(any_model, tokenizer, prompts, [2, 4])
    order = list(range(len(prompts)))
    random.Random(budget).shuffle(order)
    shuffled = read_hidden_states(any_model, tokenizer, [prompts[i] for i in order], [2, 4], token_budget=budget)
    torch.testing.assert_close(shuffled, expected[order], atol=1e-4, rtol=1e-4)


def test_left_padded_prefill_has_the_same_last_state(any_model, tokenizer, prompts):
    """What the guard sees (left padding, as generation needs it) is what training read (right padding)."""
    from lasa.models.layers import observe_layers
    from lasa.models.padding import left_pad

    ids, mask = left_pad([render(tokenizer, p.messages).token_ids for p in prompts], tokenizer.pad_token_id)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    seen = {}
    with torch.inference_mode(), observe_layers(any_model, [2], lambda layer, s: seen.__setitem__(layer, s)):
        any_model(input_ids=ids, attention_mask=mask, position_ids=positions)
    expected = read_hidden_states(any_model, tokenizer, prompts, [2])[:, 0]
    torch.testing.assert_close(seen[2][:, -1], expected, atol=1e-4, rtol=1e-4)


def test_a_truncated_stack_gives_the_same_numbers(llama, tokenizer, prompts):
    full = read_hidden_states(llama, tokenizer, prompts, [0, 1, 2, 3, 4])
    torch.testing.assert_close(read_hidden_states(llama, tokenizer, prompts, [2])[:, 0], full[:, 2])


def test_user_positions_read_the_user_message(llama, tokenizer):
    prompt = user_prompt("0", "en", "how do I water the plant")
    rendered = render(tokenizer, prompt.messages)
    start, end = rendered.user_span
    hidden = llama(torch.tensor([rendered.token_ids]), output_hidden_states=True).hidden_states[3][0]
    last = read_hidden_states(llama, tokenizer, [prompt], [3], "last_user")[0, 0]
    mean = read_hidden_states(llama, tokenizer, [prompt], [3], "mean_user")[0, 0]
    torch.testing.assert_close(last, hidden[end - 1])
    torch.testing.assert_close(mean, hidden[start:end].mean(0), atol=1e-5, rtol=1e-5)


def test_out_of_memory_halves_the_batch_and_loses_nothing(llama, tokenizer, prompts, monkeypatch):
    expected = read_hidden_states(llama, tokenizer, prompts, [2])
    whole, sizes = hidden_states._read_one_batch, []

    def scarce(model, rendered, layers, position):
        sizes.append(len(rendered))
        if len(rendered) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return whole(model, rendered, layers, position)

    monkeypatch.setattr(hidden_states, "_read_one_batch", scarce)
    torch.testing.assert_close(read_hidden_states(llama, tokenizer, prompts, [2]), expected, atol=1e-4, rtol=1e-4)
    assert max(sizes) == len(prompts)


def test_other_runtime_errors_are_not_taken_for_out_of_memory(llama, tokenizer, prompts, monkeypatch):
    def broken(*args):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(hidden_states, "_read_one_batch", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        read_hidden_states(llama, tokenizer, prompts, [2])


def test_a_prompt_longer_than_the_context_is_named(llama, tokenizer):
    prompt = user_prompt("long-one", "en", "water xyz " * 400)
    with pytest.raises(DataError, match=r"'long-one' \(en\) has \d+ tokens, more than the model's 512"):
        read_hidden_states(llama, tokenizer, [prompt], [1])


def test_a_layer_that_does_not_exist_is_an_error(llama, tokenizer, prompts):
    with pytest.raises(ModelError, match="Layer 5 does not exist"):
        read_hidden_states(llama, tokenizer, prompts, [5])


class TestStoredStates:
    @pytest.fixture(autouse=True)
    def _small_shards(self, monkeypatch):
        monkeypatch.setattr(hidden_states, "SHARD_ROWS", 4)

    def test_shards_hold_what_memory_holds(self, llama, tokenizer, prompts, tmp_path):
        stored = read_to_folder(llama, tokenizer, prompts, [1, 3], tmp_path / "states")
        assert len(list(stored.shards())) == 4
        expected = read_hidden_states(llama, tokenizer, prompts, [1, 3])
        torch.testing.assert_close(stored.all(), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(stored.layer(1), expected[:, 0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(stored.layer(3), expected[:, 1], atol=1e-4, rtol=1e-4)

    def test_an_interrupted_read_goes_on_and_a_second_read_is_free(
        self, llama, tokenizer, prompts, tmp_path, monkeypatch
    ):
        whole, calls = hidden_states._read_one_batch, []

        def counted(model, rendered, layers, position):
            calls.append(len(rendered))
            if sum(calls) > 8 and len(calls) < 100:
                calls.extend([0] * 100)
                raise KeyboardInterrupt
            return whole(model, rendered, layers, position)

        monkeypatch.setattr(hidden_states, "_read_one_batch", counted)
        with pytest.raises(KeyboardInterrupt):
            read_to_folder(llama, tokenizer, prompts, [1], tmp_path / "states")
        with pytest.raises(ArtifactError, match="8 of 15 rows were read"):
            StoredStates(tmp_path / "states")
        calls[:] = [0] * 100
        stored = read_to_folder(llama, tokenizer, prompts, [1], tmp_path / "states")
        assert sum(calls) == 7
        torch.testing.assert_close(
            stored.all(), read_hidden_states(llama, tokenizer, prompts, [1]), atol=1e-4, rtol=1e-4
        )
        calls[:] = [0] * 100
        read_to_folder(llama, tokenizer, prompts, [1], tmp_path / "states")
        assert sum(calls) == 0

    def test_states_of_another_model_are_not_mixed_in(self, llama, tokenizer, prompts, tmp_path):
        read_to_folder(llama, tokenizer, prompts, [1], tmp_path / "states")
        with pytest.raises(ArtifactError, match="differ in: model"):
            read_to_folder(build_model("llama", tokenizer, seed=1), tokenizer, prompts, [1], tmp_path / "states")
        with pytest.raises(ArtifactError, match="differ in: prompts"):
            changed = [dataclasses.replace(p, language="th") for p in prompts]
            read_to_folder(llama, tokenizer, changed, [1], tmp_path / "states")

    def test_a_flipped_byte_names_the_shard(self, llama, tokenizer, prompts, tmp_path):
        read_to_folder(llama, tokenizer, prompts, [1], tmp_path / "states")
        shard = tmp_path / "states" / "states-00001.safetensors"
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"states-00001\.safetensors is damaged"):
            StoredStates(tmp_path / "states")
