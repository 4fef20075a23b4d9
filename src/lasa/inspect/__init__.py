"""Inspect (inspect-ai): the benchmarks as tasks, the judges as scorers, guarded local models as a provider.

    inspect eval lasa/multijail -T path=MultiJail.csv -T judge=llm:gpt-4o@https://api.openai.com/v1 --model openai/...
    inspect eval lasa/embedded --model lasa/embedded -M interpreter=runs/demo/interpreter
    inspect eval lasa/embedded --model lasa/runs/demo -M system=lasa

Inspect finds this package by its entry point. The prompts, the verdicts and the statistics are those of `lasa
evaluate`, so the figures are, too.
"""

from lasa.inspect.provider import lasa_models
from lasa.inspect.scorers import figures, judged
from lasa.inspect.tasks import BENCHMARKS, embedded, table

__all__ = ["BENCHMARKS", "embedded", "figures", "judged", "lasa_models", "table"]
