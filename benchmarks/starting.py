"""How long a person waits before anything happens: help, a check of a model, a server's first token.

Every command starts a Python of its own. What a model needs at least is the import of torch and transformers, so the
cold start of the server is a ratio to that.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
from harness import Ratio, Scale, interleaved

from lasa.files.artifacts import model_fingerprint
from lasa.interpreter.probe import InterpreterConfig, SafetySemanticInterpreter
from lasa.models.layers import hidden_size
from lasa.models.loading import load_model
from lasa.models.positions import ReadPoint
from lasa.models.rendering import template_fingerprint

LASA = (sys.executable, "-m", "lasa")
IMPORTS = "import torch; from transformers import AutoTokenizer, LlamaForCausalLM"
"""What any program does that loads this model."""


def measure(scale: Scale) -> list[Ratio]:
    model, tokenizer = load_model("embedded")
    point = ReadPoint(6, "last", template_fingerprint(tokenizer))
    interpreter = SafetySemanticInterpreter(
        InterpreterConfig(point, hidden_size(model), 8, base_fingerprint=model_fingerprint(model))
    ).eval()
    with tempfile.TemporaryDirectory() as folder:
        interpreter.save_pretrained(folder)
        seconds = interleaved(
            {
                "help": lambda: _run(*LASA, "--help"),
                "imports": lambda: _run(sys.executable, "-c", IMPORTS),
                "doctor": lambda: _run(*LASA, "doctor"),
                "first token": lambda: _first_token(Path(folder)),
            },
            scale.repeats,
        )
    detail = f"{seconds['first token']:.2f} s / {seconds['imports']:.2f} s"
    return [
        Ratio("lasa --help, seconds", seconds["help"], 0.3),
        Ratio("lasa doctor on the embedded model, seconds", seconds["doctor"], 4),
        Ratio(
            "lasa serve, cold start to the first token / importing torch and transformers",
            seconds["first token"] / seconds["imports"],
            2,
            detail=detail,
        ),
    ]


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _first_token(interpreter: Path) -> None:
    """Start a server, ask, and stop it once the first token is there."""
    command = [*LASA, "serve", "--interpreter", str(interpreter), "--force", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = re.search(r"http://\S+", server.stdout.readline()).group()
            asked = {"model": "embedded", "messages": [{"role": "user", "content": "hello"}], "stream": True}
            with httpx.stream("POST", f"{address}v1/chat/completions", json=asked, timeout=60) as response:
                for line in response.iter_lines():
                    told = json.loads(line[6:]) if line.startswith("data: {") else {"choices": []}
                    if any(choice["delta"].get("content") for choice in told["choices"]):
                        return
            raise RuntimeError("The server said nothing.")
        finally:
            server.kill()
