"""Settings of vLLM for the tests (one process, a CPU), and the tiny models of lasa's own tests."""

import importlib.util
import os
import sys
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    VLLM_NO_USAGE_STATS="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_LOGGING_LEVEL="ERROR",
)
os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # the V2 runner needs a GPU

import pytest

LASA_TESTS = Path(__file__).resolve().parents[3] / "tests"
sys.path.append(str(LASA_TESTS))

_spec = importlib.util.spec_from_file_location("lasa_conftest", LASA_TESTS / "conftest.py")
_lasa = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_lasa)
build_model, tokenizer = _lasa.build_model, _lasa.tokenizer

from engines import embedded_case, tiny_case


@pytest.fixture(scope="session")
def embedded(tmp_path_factory):
    """The embedded model behind the transformers guard, and where it and its interpreter lie."""
    return embedded_case(tmp_path_factory.mktemp("embedded"))


@pytest.fixture(scope="session")
def tiny(tokenizer, tmp_path_factory):
    """Makes tiny random models of a family behind the transformers guard, each once."""
    made = {}

    def make(family):
        if family not in made:
            made[family] = tiny_case(family, tokenizer, tmp_path_factory.mktemp(family))
        return made[family]

    return make
