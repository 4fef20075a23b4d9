"""An evaluation, with rendering, judging and writing, against bare `generate` on the same batches of its prompts.

The embedded model answers its own world, so answers end where they end and the judge is the exact one.
"""

import tempfile
from pathlib import Path

import torch
from harness import SMOKE, Ratio, Scale, interleaved

from lasa.data.sources import load_prompts
from lasa.evaluation.answering import LocalModel
from lasa.evaluation.judge_settings import judge_from_text, make_judges
from lasa.evaluation.panel import Panel
from lasa.evaluation.run import generate_samples, plan_batches
from lasa.models.generation import GenerationSettings, terminators
from lasa.models.loading import load_model
from lasa.models.padding import left_pad
from lasa.models.rendering import render

NEW_TOKENS, ROWS, TOKENS = 64, 250, 65_536


def measure(scale: Scale) -> list[Ratio]:
    model, tokenizer = load_model("embedded")
    prompts = load_prompts("embedded:combinations")[: 40 if scale == SMOKE else 1000]
    system = LocalModel(model, tokenizer, None, GenerationSettings(max_new_tokens=NEW_TOKENS))
    tasks = [("combinations", prompt) for prompt in prompts]
    ends = terminators(model, tokenizer)
    batches = [
        left_pad([render(tokenizer, prompts[row].messages).token_ids for row in batch], ends[0])
        for batch in plan_batches(tasks, system, ROWS, TOKENS)
    ]

    @torch.inference_mode()
    def bare() -> None:
        for ids, mask in batches:
            model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=ends,
                pad_token_id=ends[0],
            )

    def evaluated() -> None:
        with tempfile.TemporaryDirectory() as folder:
            panel = Panel(*make_judges([judge_from_text("embedded-world")], Path(folder)))
            samples = Path(folder) / "samples.jsonl"
            generate_samples(samples, {"combinations": prompts}, panel, system, batch_size=ROWS, batch_tokens=TOKENS)

    seconds = interleaved({"bare": bare, "evaluated": evaluated}, scale.repeats)
    return [
        Ratio(
            f"evaluation / bare generate, {len(prompts):,} prompts answered and judged",
            seconds["bare"] / seconds["evaluated"],
            0.9,
            at_least=True,
            detail=f"{len(prompts) / seconds['evaluated']:.0f} / {len(prompts) / seconds['bare']:.0f} prompts/s",
        )
    ]
