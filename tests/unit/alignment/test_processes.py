"""One device in one process, whatever GPUs are to be seen; each process of a launch on its own."""

import resource
from pathlib import Path
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


def test_a_model_on_the_cpu_is_trained_there_beside_gpus(gpus, tokenizer, tmp_path, monkeypatch):
    model = build_model("llama", tokenizer, layers=1)

    def on_cpu():
        return trainer_arguments(model, SystemSettings(method="sft"), tmp_path, 0)["use_cpu"]

    gpus(2)
    assert on_cpu()
    monkeypatch.setenv("WORLD_SIZE", "2")  # a launch moves it to the GPU of each process
    assert not on_cpu()


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


def test_processes_that_have_shared_their_work_wait_for_each_other(monkeypatch):
    """A process that then ended at once hung in the end of the group, with PyTorch 2.7."""
    done = []

    class Second:
        process_index, num_processes = 1, 2

        def wait_for_everyone(self):
            done.append("waited")

    def gather(mine):
        done.append("gathered")
        return [(0, 2), (2, 4), *mine]

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.PartialState", Second)
    monkeypatch.setattr("accelerate.utils.gather_object", gather)
    assert shared([1, 2, 3], lambda rows: [row + 1 for row in rows]) == [2, 3, 4]
    assert done == ["gathered", "waited"]


class Tied(torch.nn.Module):
    """200 MB of weights, used twice, and a buffer."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.one = torch.nn.Linear(5000, 20_000, bias=False, device=device, dtype=torch.bfloat16)
        self.other = torch.nn.Linear(5000, 20_000, bias=False, device=device, dtype=torch.bfloat16)
        self.norm = torch.nn.Parameter(torch.ones(4, device=device))
        self.register_buffer("angles", torch.arange(4.0), persistent=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        self.other.weight = self.one.weight


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_model_that_is_to_be_sharded_stays_whole_in_the_first_process_only(monkeypatch):
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    monkeypatch.setenv("RANK", "1")
    model, before = Tied("meta"), resident()
    hand_over(model, torch.float32)
    assert resident() - before < 40e6
    assert len({p.data_ptr() for p in model.parameters()}) == 2  # accelerate tells them apart by their addresses
    assert model.other.weight is model.one.weight
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.float32, "cpu")}
    assert model.angles.tolist() == [0, 1, 2, 3]
    for changes in ({"RANK": "0"}, {"FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}):
        for name, value in changes.items():
            monkeypatch.setenv(name, value)
        model = torch.nn.Linear(2, 2)
        kept = model.weight.clone()
        hand_over(model, torch.float32)
        assert torch.equal(model.weight, kept)
        monkeypatch.setenv("RANK", "1")
