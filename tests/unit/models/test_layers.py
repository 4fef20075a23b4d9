import pytest
import torch

from lasa.errors import ModelError
from lasa.models.layers import check_layer, decoder_blocks, forward_to_layers, num_layers, observe_layers


def hooks(model) -> int:
    """Hooks on the decoder blocks; transformers leaves some of its own where hidden states were once asked for."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in decoder_blocks(model))


def test_layer_index_is_the_position_in_output_hidden_states(any_model):
    ids = torch.randint(8, 200, (2, 7))
    expected = any_model(ids, output_hidden_states=True).hidden_states
    seen = {}
    forward_to_layers(any_model, range(5), lambda layer, states: seen.__setitem__(layer, states), input_ids=ids)
    assert list(seen) == [0, 1, 2, 3, 4]
    for layer in range(4):
        torch.testing.assert_close(seen[layer], expected[layer])


def test_the_last_layer_is_read_before_the_final_norm(any_model):
    ids = torch.randint(8, 200, (1, 5))
    seen = {}
    forward_to_layers(any_model, [4], lambda layer, states: seen.__setitem__(layer, states), input_ids=ids)
    normed = any_model(ids, output_hidden_states=True).hidden_states[4]
    torch.testing.assert_close(any_model.get_decoder().norm(seen[4]), normed)
    assert not torch.allclose(seen[4], normed)


def test_the_pass_stops_after_the_deepest_layer(llama):
    calls = []
    handle = decoder_blocks(llama)[2].register_forward_hook(lambda *a: calls.append(1))
    try:
        forward_to_layers(llama, [1, 2], lambda layer, states: None, input_ids=torch.ones(1, 3, dtype=torch.long))
    finally:
        handle.remove()
    assert not calls


def test_hooks_are_removed_when_the_body_fails(llama):
    before = hooks(llama)
    with pytest.raises(RuntimeError, match="boom"), observe_layers(llama, [0, 2], lambda layer, states: None):
        raise RuntimeError("boom")
    assert hooks(llama) == before


def test_hooks_are_removed_when_a_layer_does_not_exist(llama):
    before = hooks(llama)
    with pytest.raises(ModelError, match="Layer 9 does not exist"), observe_layers(llama, [1, 9], lambda *a: None):
        pass
    assert hooks(llama) == before


def test_blocks_are_found_inside_a_peft_model(llama, tokenizer):
    from peft import LoraConfig, get_peft_model

    from conftest import build_model

    wrapped = get_peft_model(build_model("llama", tokenizer), LoraConfig(target_modules="all-linear"))
    assert len(decoder_blocks(wrapped)) == num_layers(wrapped) == 4


def test_a_layer_outside_the_model_is_an_error(llama):
    with pytest.raises(ModelError, match=r"layers 0 \(embeddings\) to 4"):
        check_layer(llama, 5)
