"""One device in one process, whatever GPUs are to be seen; each process of a launch on its own."""

from types import SimpleNamespace

import pytest
import torch

from conftest import build_model
from lasa.alignment import arguments, processes
from lasa.alignment.arguments import CHECKPOINTING, one_device, trainer_arguments
from lasa.alignment.processes import hand_over, shared, training_device
from lasa.alignment.settings import SystemSettings
from lasa.errors import RecipeError
from lasa.models import loading
from lasa.models.loading import load_model
from lasa.pipeline import run_recipe


@pytest.fixture
def gpus(monkeypatch):
    """A machine on which so many GPUs are to be seen."""

    def see(number: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)

    return see


def test_one_process_trains_on_one_of_several_gpus_and_says_so(gpus, monkeypatch):
    said = []
    monkeypatch.setattr(processes, "say", said.append)
    gpus(8)
    assert training_device("auto") == "cuda:0"
    assert "one of 8 visible GPUs. To train on all of them: accelerate launch --num_processes 8" in said.pop()
    gpus(1)
    assert training_device("auto") == training_device("cuda:0") == "cuda:0"
    assert said == []


def test_a_gpu_by_its_number_is_refused_with_what_to_do(gpus):
    gpus(8)
    with pytest.raises(RecipeError, match=r"cannot stay on the device 'cuda:3'.*CUDA_VISIBLE_DEVICES=3"):
        training_device("cuda:3")


def test_without_a_gpu_or_on_the_cpu_the_device_is_as_asked(gpus):
    gpus(0)
    assert [training_device(asked) for asked in ("auto", "cpu", "mps")] == ["auto", "cpu", "mps"]
    gpus(2)
    assert training_device("cpu") == "cpu"


def test_each_process_of_a_launch_trains_on_its_own_gpu(gpus, monkeypatch):
    gpus(8)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "5")
    assert training_device("auto") == "cuda:5"
    assert training_device("cpu") == "cpu"


def test_no_batch_is_spread_over_all_gpus_to_be_seen():
    """transformers' `DataParallel`: TRL's trainers either refuse it or fail in the first step."""
    config = SimpleNamespace(n_gpu=8)
    assert one_device(config)._n_gpu == 1
    assert not hasattr(one_device(SimpleNamespace(n_gpu=0)), "_n_gpu")


def test_a_model_goes_straight_to_the_gpu_that_was_named(gpus, model_folder, monkeypatch):
    gpus(8)
    asked = []

    def from_pretrained(*args, device_map, **kwargs):
        asked.append(device_map)
        raise OSError("there is no GPU")

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    for device in ("auto", "cuda:5", "cpu"):
        with pytest.raises(Exception, match="there is no GPU"):
            load_model(str(model_folder), device=device)
    assert asked == ["auto", {"": "cuda:5"}, None]


def test_a_run_in_several_processes_says_how_to_train_in_them(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match=r"is one process.*accelerate launch -m lasa align"):
        run_recipe(None, tmp_path)


def test_large_models_compute_their_activations_twice_unless_told_otherwise(tokenizer, tmp_path, monkeypatch):
    model = build_model("llama", tokenizer, layers=1)

    def chosen(**settings):
        return trainer_arguments(model, SystemSettings(method="sft", **settings), tmp_path, 0)[CHECKPOINTING]

    assert chosen() is False
    monkeypatch.setattr(arguments, "LARGE", 1000)
    assert chosen() is True
    assert chosen(gradient_checkpointing=False) is False


def test_one_process_works_on_all_rows():
    assert shared([1, 2, 3], lambda rows: [row + 1 for row in rows]) == [2, 3, 4]


def test_a_model_that_is_to_be_sharded_stays_whole_in_the_first_process_only(tokenizer, monkeypatch):
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    held = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        model = build_model("qwen2", tokenizer, layers=2, tie_word_embeddings=True)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        hand_over(model)
        held.append(sum(p.nbytes for p in model.parameters() if not p.is_meta))
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert all(torch.equal(buffers[name], buffer) for name, buffer in model.named_buffers())
    assert held[0] > 0 == held[1]
    monkeypatch.delenv("FSDP_CPU_RAM_EFFICIENT_LOADING")
    model = build_model("llama", tokenizer, layers=1)
    hand_over(model)
    assert not any(p.is_meta for p in model.parameters())
