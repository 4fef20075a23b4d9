"""Reading hidden states against the bare forward pass they need, and memory against the number of prompts."""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from harness import SMOKE, Ratio, Scale, interleaved, peak_memory
from random_model import make_model, make_prompts, make_tokenizer

from lasa.models.hidden_states import read_hidden_states, read_to_folder


def measure(scale: Scale) -> list[Ratio]:
    model, tokenizer = make_model(scale), make_tokenizer()
    prompts = make_prompts(scale.prompts, 10, 120)
    layers = list(range(scale.layers + 1))
    batches = _batches(model, tokenizer, prompts)

    @torch.inference_mode()
    def bare() -> None:
        for batch in batches:
            model.model(**batch, use_cache=False)

    @torch.inference_mode()
    def one_pass_per_layer() -> None:
        for layer in layers:
            for batch in batches:
                states = model.model(**batch, use_cache=False, output_hidden_states=True).hidden_states
                states[layer][:, -1].clone()

    parts = [scale.layers // 4, scale.layers // 2, scale.layers * 3 // 4]
    seconds = interleaved(
        {
            "bare": bare,
            "all": lambda: read_hidden_states(model, tokenizer, prompts, layers),
            **{f"layer {k}": lambda k=k: read_hidden_states(model, tokenizer, prompts, [k]) for k in parts},
        },
        scale.repeats,
    )
    slow = interleaved(
        {"all": lambda: read_hidden_states(model, tokenizer, prompts, layers), "per layer": one_pass_per_layer},
        repeats=1,
        warm_up=False,
    )
    return [
        *(_share_of_ceiling(scale, model, tokenizer) if scale.device == "cuda" else _memory(scale)),
        Ratio(
            "all layers in one pass / bare headless forward",
            seconds["all"] / seconds["bare"],
            1.05,
            detail=f"{seconds['all']:.2f} s / {seconds['bare']:.2f} s",
        ),
        Ratio(
            "one full pass per layer / all layers in one pass",
            slow["per layer"] / slow["all"],
            10,
            at_least=True,
            detail=f"{slow['per layer']:.2f} s / {slow['all']:.2f} s",
        ),
        *(
            Ratio(
                f"layer {k} of {scale.layers} alone / {k}/{scale.layers} of all layers in one pass",
                seconds[f"layer {k}"] / (k / scale.layers * seconds["all"]),
                1.10,
                detail=f"{seconds[f'layer {k}']:.2f} s / {k / scale.layers * seconds['all']:.2f} s",
            )
            for k in parts
        ),
    ]


def _share_of_ceiling(scale: Scale, model, tokenizer) -> list[Ratio]:
    """Of the rate of a large product of matrices in bfloat16: 64 prompts of 128 tokens, all blocks, text to states.

    Counted are two operations for each weight of a block and token, nothing of attention.
    """
    prompts = make_prompts(64, 128, 128)
    square = torch.randn(8192, 8192, dtype=torch.bfloat16, device=scale.device)
    work = {
        "product": lambda: [square @ square for _ in range(10)],
        "read": lambda: read_hidden_states(model, tokenizer, prompts, [scale.layers]),
    }
    seconds = interleaved(work, 3 * scale.repeats)
    ceiling = 10 * 2 * 8192**3 / seconds["product"]
    weights = sum(p.numel() for p in model.model.layers.parameters())
    rate = 2 * weights * 64 * 128 / seconds["read"]
    return [
        Ratio(
            "reading 64 prompts of 128 tokens / ceiling of bfloat16",
            rate / ceiling,
            0.6,
            at_least=True,
            detail=f"{rate / 1e12:.0f} of {ceiling / 1e12:.0f} TFLOP/s, {seconds['read']:.3f} s",
        )
    ]


def _memory(scale: Scale) -> list[Ratio]:
    few, many = _peak(scale, scale.few_prompts), _peak(scale, scale.many_prompts)
    return [
        Ratio(
            f"peak memory, {scale.many_prompts:,} prompts / {scale.few_prompts:,}",
            many / few,
            1.10,
            detail=f"{many / 2**20:.0f} MiB / {few / 2**20:.0f} MiB",
        )
    ]


def _batches(model, tokenizer, prompts) -> list[dict[str, torch.Tensor]]:
    """The very batches that the reader makes."""
    batches = []

    def record(_, args, kwargs) -> None:
        batches.append({name: kwargs[name] for name in ("input_ids", "attention_mask")})

    handle = model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        read_hidden_states(model, tokenizer, prompts, [1])
    finally:
        handle.remove()
    return batches


def _peak(scale: Scale, count: int) -> int:
    """Peak memory, in bytes, of a process that reads all layers of so many prompts to a folder."""
    size = "smoke" if scale == SMOKE else "full"
    result = subprocess.run([sys.executable, __file__, str(count), size], capture_output=True, text=True, check=True)
    return int(result.stdout)


def _read_and_report(count: int, scale: Scale) -> None:
    """Prompts of 10-16 tokens, so that 20,000 are read in minutes; every state has its full size all the same."""
    model, tokenizer = make_model(scale), make_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        prompts = make_prompts(count, 10, 16)
        read_to_folder(model, tokenizer, prompts, range(scale.layers + 1), Path(folder) / "states")
    print(peak_memory())


if __name__ == "__main__":
    _read_and_report(int(sys.argv[1]), SMOKE if sys.argv[2] == "smoke" else Scale())
