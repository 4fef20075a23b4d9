"""Weights of 8 significant bits learn what weights of 24 do, on average."""

import pytest
import torch

from conftest import build_model
from lasa.alignment.optimizer import StochasticAdamW, round_stochastically
from lasa.alignment.rows import token_rows
from lasa.alignment.settings import SystemSettings
from lasa.alignment.trainers import train
from lasa.data.world import tables
from lasa.errors import RecipeError


def test_rounding_is_to_a_neighbour_and_right_on_average():
    torch.manual_seed(0)
    value = 1 + 0.3 / 128  # bfloat16 holds 1 and 1 + 1 / 128
    rounded = round_stochastically(torch.full((100_000,), value))
    assert set(rounded.unique().tolist()) == {1.0, 1 + 1 / 128}
    assert rounded.mean().item() == pytest.approx(value, abs=5e-5)
    kept = torch.randn(1000).bfloat16().float()
    assert torch.equal(round_stochastically(kept), kept)
    odd = torch.tensor([torch.inf, -torch.inf, torch.nan])
    assert str(round_stochastically(odd)) == str(odd)


def test_small_updates_arrive_where_plain_rounding_loses_them():
    torch.manual_seed(0)
    weights = {
        "plain": torch.nn.Parameter(torch.ones(4, 5000, dtype=torch.bfloat16)),
        "stochastic": torch.nn.Parameter(torch.ones(4, 5000, dtype=torch.bfloat16)),
        "float32": torch.nn.Parameter(torch.ones(4, 5000)),
    }
    optimizers = [
        torch.optim.AdamW([weights["plain"]], 1e-5, weight_decay=0),
        StochasticAdamW([weights["stochastic"]], 1e-5),
        torch.optim.AdamW([weights["float32"]], 1e-5, weight_decay=0),
    ]
    for _ in range(50):
        for weight, optimizer in zip(weights.values(), optimizers, strict=True):
            weight.grad = torch.full_like(weight, 0.1)
            optimizer.step()
    assert weights["plain"].float().mean() == 1
    moved = 1 - weights["float32"].mean().item()
    assert 1 - weights["stochastic"].float().mean().item() == pytest.approx(moved, rel=0.2)


def test_it_holds_eight_bytes_a_parameter(tokenizer):
    model = build_model("llama", tokenizer, layers=2).to(torch.bfloat16)
    optimizer = StochasticAdamW(model.parameters(), 1e-3, weight_decay=0.1)
    model(input_ids=torch.ones(1, 4, dtype=torch.long), labels=torch.ones(1, 4, dtype=torch.long)).loss.backward()
    optimizer.step()
    parameters = list(model.parameters())
    held = sum(p.nbytes + p.grad.nbytes for p in parameters)
    held += sum(one.nbytes for state in optimizer.state.values() for one in state.values() if torch.is_tensor(one))
    assert held == 8 * sum(p.numel() for p in parameters)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


@pytest.mark.parametrize("method", ["sft", "kto"])
def test_a_training_with_it_goes_the_way_of_one_in_float32(method, tokenizer, tmp_path):
    table = tables.preferences(("en",), 6, 6, ("en", "zh"))
    rows = token_rows(tokenizer, table, [[]] * len(table), seed=0)
    losses = {}
    for name in ("adamw", "adamw_bfloat16"):
        model = build_model("llama", tokenizer, layers=2)
        settings = SystemSettings(
            method=method, steps=8, batch_size=4, warmup_steps=0, learning_rate=3e-3, optimizer=name
        )
        losses[name] = train(model, tokenizer, rows, settings, tmp_path / name, "test").losses
        assert model.dtype == torch.float32  # as it was
    assert losses["adamw_bfloat16"] == pytest.approx(losses["adamw"], rel=0.1)


@pytest.mark.parametrize("method", ["sft", "kto"])
def test_eight_bits_learn_the_same_and_leave_the_embedding_alone(method, tokenizer, tmp_path):
    table = tables.preferences(("en",), 6, 6, ("en", "zh"))
    rows = token_rows(tokenizer, table, [[]] * len(table), seed=0)
    losses = {}
    for name in ("adamw", "adamw_8bit"):
        model = build_model("llama", tokenizer, layers=2, hidden_size=64, head_dim=16, intermediate_size=128)
        settings = SystemSettings(
            method=method, steps=8, batch_size=4, warmup_steps=0, learning_rate=1e-3, optimizer=name
        )
        trained = train(model, tokenizer, rows, settings, tmp_path / name, "test")
        losses[name] = trained.losses
    assert losses["adamw_8bit"] == pytest.approx(losses["adamw"], rel=0.02)
    large = [weight for weight in trained.model.parameters() if weight.numel() >= 4096]  # bitsandbytes' own bound
    moments = [trained.trainer.optimizer.state[weight] for weight in large]
    held = sum(state[name].nbytes for state in moments for name in ("state1", "state2"))
    embedding = trained.model.get_input_embeddings().weight.numel()
    assert held == 2 * sum(weight.numel() for weight in large) + 6 * embedding  # beside weight and gradient, 4 each


def test_eight_bits_without_bitsandbytes_say_what_to_install(tokenizer, tmp_path, monkeypatch):
    from lasa.alignment import arguments

    monkeypatch.setattr(arguments, "find_spec", lambda name: None)
    table = tables.preferences(("en",), 6, 6, ("en", "zh"))
    rows = token_rows(tokenizer, table, [[]] * len(table), seed=0)
    settings = SystemSettings(method="sft", steps=1, batch_size=4, optimizer="paged_adamw_8bit")
    with pytest.raises(RecipeError, match=r"paged_adamw_8bit needs the package bitsandbytes.*adamw_bfloat16"):
        train(build_model("llama", tokenizer, layers=2), tokenizer, rows, settings, tmp_path, "test")
