"""A step of KTO against one of TRL's own trainer, which tokenizes and pairs the same rows itself.

Both train an adapter with the same arguments. What ours does beside a step is to look whether losses, gradients and
weights are finite.
"""

import random
import tempfile
from pathlib import Path

from datasets import Dataset
from harness import Ratio, Scale, interleaved
from random_model import WORDS, make_model, make_tokenizer
from transformers import PrinterCallback
from trl import KTOConfig, KTOTrainer

from lasa.alignment.arguments import adapter_config, trainer_arguments
from lasa.alignment.kernels import training_kernels
from lasa.alignment.rows import TrainingExample
from lasa.alignment.settings import SystemSettings
from lasa.alignment.soundness import StayFinite
from lasa.alignment.trainers import make_trainer

PROMPT, ANSWER = 160, 64
"""Tokens."""


def measure(scale: Scale) -> list[Ratio]:
    tokenizer = make_tokenizer()
    settings = SystemSettings(
        method="kto", lora_rank=16, learning_rate=1e-5, steps=scale.training_steps, batch_size=8, warmup_steps=1
    )
    draw = random.Random(0)
    texts = [
        (" ".join(draw.choices(WORDS, k=PROMPT)), " ".join(draw.choices(WORDS, k=ANSWER)), number % 2 == 0)
        for number in range(8 * scale.training_steps)
    ]

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    with tempfile.TemporaryDirectory() as folder:
        model = make_model(scale)
        arguments = trainer_arguments(model, settings, Path(folder), seed=0)
        rows = [
            TrainingExample(ids(prompt), [*ids(answer), tokenizer.eos_token_id], good, str(number), "en", False)
            for number, (prompt, answer, good) in enumerate(texts)
        ]
        ours = make_trainer(model, tokenizer, rows, settings, arguments)
        ours.watch = StayFinite("benchmark", rows, settings.max_length)
        ours.add_callback(ours.watch)
        theirs = KTOTrainer(
            model=make_model(scale).train(),
            args=KTOConfig(**arguments, beta=settings.beta),
            train_dataset=Dataset.from_list([{"prompt": p, "completion": f" {a}", "label": g} for p, a, g in texts]),
            processing_class=tokenizer,
            peft_config=adapter_config(settings, None),
        )
        for trainer in (ours, theirs):
            trainer.remove_callback(PrinterCallback)
        seconds = interleaved({"ours": training_kernels()(ours.train), "theirs": theirs.train}, 3)
    return [
        Ratio(
            f"KTO's steps / TRL's own, 8 rows of {PROMPT} + {ANSWER} tokens, adapter of rank {settings.lora_rank}",
            seconds["ours"] / seconds["theirs"],
            1.10,
            detail=f"{seconds['ours'] / settings.steps:.3f} s / {seconds['theirs'] / settings.steps:.3f} s a step",
        )
    ]
