"""What the guard costs inside vLLM: the same work with and without the plugin, in turns, as ratios of seconds.

    python benchmarks/overhead.py            # a random Llama, nothing is flagged

Each engine lives in a process of its own; the two take turns, so that a busy machine slows both.
"""

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

LAYERS, WIDTH, READ_LAYER, PROBE_WIDTH = 8, 384, 4, 256
ROUNDS = 5
WORK = {"prefill": (16, 96, 1), "decode": (16, 8, 32)}
"""Requests, words of each prompt, tokens of each answer."""

WORDS = ("how", "do", "I", "water", "the", "plant", "paint", "house", "cook", "rice", "read", "a", "letter")


def make(folder: Path) -> None:
    """Store a random model and an interpreter that flags nothing."""
    from lasa.files.artifacts import model_fingerprint
    from lasa.interpreter.probe import InterpreterConfig, SafetySemanticInterpreter
    from lasa.models.loading import load_model
    from lasa.models.positions import ReadPoint
    from lasa.models.rendering import template_fingerprint

    _, tokenizer = load_model("embedded")
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8_000,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=WIDTH // 64,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    point = ReadPoint(READ_LAYER, "last", template_fingerprint(tokenizer))
    probe = SafetySemanticInterpreter(InterpreterConfig(point, WIDTH, PROBE_WIDTH, threshold=1.0))
    probe.config = replace(probe.config, base_fingerprint=model_fingerprint(model))
    probe.save_pretrained(folder / "interpreter")


def work(folder: Path, guarded: bool) -> None:
    """Serve one line of standard input after the other: do that work, and print the seconds it took."""
    from vllm import LLM, SamplingParams

    guard = {
        "additional_config": {"lasa": {"interpreter": str(folder / "interpreter")}},
        "logits_processors": ["lasa_vllm.processor_v1:ConditionProcessor"],
        "scheduler_cls": "lasa_vllm.scheduler.guarded_scheduler",
    }
    llm = LLM(
        str(folder / "model"),
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=16,
        kv_cache_memory_bytes=256 << 20,
        enable_prefix_caching=False,
        **(guard if guarded else {}),
    )
    draw = random.Random(0)
    for line in sys.stdin:
        requests, words, answer = WORK[line.strip()]
        texts = [" ".join(draw.choices(WORDS, k=words)) for _ in range(requests)]
        wanted = SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True)
        started = time.perf_counter()
        llm.chat([[{"role": "user", "content": text}] for text in texts], wanted, use_tqdm=False)
        print("seconds", time.perf_counter() - started, flush=True)


def main() -> None:
    """Measure and print a table."""
    with tempfile.TemporaryDirectory() as name:
        make(Path(name))
        engines = {}
        for guarded in (True, False):
            environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
            if not guarded:
                environment["VLLM_PLUGINS"] = ""
            engines[guarded] = subprocess.Popen(
                [sys.executable, __file__, "work", name, str(int(guarded))],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )

        def seconds(guarded: bool, kind: str) -> float:
            engine = engines[guarded]
            print(kind, file=engine.stdin, flush=True)
            for line in engine.stdout:
                if line.startswith("seconds "):
                    return float(line.split()[1])
            raise SystemExit("an engine stopped")

        print("| work | requests x (words asked + tokens answered) | seconds without | with / without (range) |")
        print("| --- | --- | --- | --- |")
        for kind, (requests, prompt, answer) in WORK.items():
            for guarded in (True, False):
                seconds(guarded, kind)
            plain, ratios = [], []
            for turn in range(ROUNDS):
                both = {guarded: seconds(guarded, kind) for guarded in ((True, False) if turn % 2 else (False, True))}
                plain.append(both[False])
                ratios.append(both[True] / both[False])
            spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"
            print(
                f"| {kind} | {requests} x ({prompt} + {answer}) | {statistics.median(plain):.2f} | {spread} |",
                flush=True,
            )
        for engine in engines.values():
            engine.stdin.close()
            engine.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(Path(sys.argv[2]), sys.argv[3] == "1")
    else:
        main()
