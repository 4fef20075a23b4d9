import dataclasses
import random

import pytest
import torch
from conftest import build_model

from lasa import hidden_states
from lasa.errors import ArtifactError, DataError, ModelError
from lasa.hidden_states import StoredStates, read_hidden_states, read_to_folder
from lasa.prompts import user_prompt
from lasa.rendering import render


def test_states_equal_output_hidden_states_of_each_prompt_alone(any_model, tokenizer, prompts):
    states = read_hidden_states(any_model, tokenizer, prompts, [0, 1, 2, 3])
    for row, prompt in enumerate(prompts):
        ids = torch.tensor([render(tokenizer, prompt.messages).token_ids])
        expected = any_model(ids, output_hidden_states=True).hidden_states
        for layer in range(4):
            torch.testing.assert_close(states[row, layer], expected[layer][0, -1], atol=1e-4, rtol=1e-4)


def test_a_mixture_of_experts_is_read_like_any_model(tokenizer, prompts):
    model = build_model("mixtral", tokenizer, num_local_experts=4, num_experts_per_tok=2)
    alone = torch.cat([read_hidden_states(model, tokenizer, [p], [2]) for p in prompts])
    torch.testing.assert_close(read_hidden_states(model, tokenizer, prompts, [2]), alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("budget", [1, 60, 100_000])
def test_a_state_does_not_depend_on_batch_size_or_neighbours(any_model, tokenizer, prompts, budget):
    expected = read_hidden_states(any_model, tokenizer, prompts, [2, 4])
    order = list(range(len(prompts)))
    random.Random(budget).shuffle(order)
    shuffled = read_hidden_states(any_model, tokenizer, [prompts[i] for i in order], [2, 4], token_budget=budget)
    torch.testing.assert_close(shuffled, expected[order], atol=1e-4, rtol=1e-4)


def test_left_padded_prefill_has_the_same_last_state(any_model, tokenizer, prompts):
    """What the guard sees (left padding, as generation needs it) is what training read (right padding)."""
    from lasa.generation import left_pad
    from lasa.layers import observe_layers

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
    torch.testing.assert_close(
        read_hidden_states(llama, tokenizer, prompts, [2]), expected, atol=1e-4, rtol=1e-4
    )
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
        with pytest.raises(ArtifactError, match="states-00001.safetensors is damaged"):
            StoredStates(tmp_path / "states")
