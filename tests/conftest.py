import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# over tiny matrices two threads only wait for each other, and on a busy machine they wait for minutes
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from lasa.data.prompts import Prompt, user_prompt

FAMILIES = ("llama", "qwen2", "qwen3", "gemma", "mistral")

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level tokenizer with a chat template; BOS comes from the template and from the tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["how do I water the plant", "tell me how to paint the house"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=TEMPLATE,
        padding_side="left",
    )


def build_model(family: str, tokenizer, *, layers: int = 4, seed: int = 0, **settings):
    """A tiny random model of a family, in float32."""
    torch.manual_seed(seed)
    facts = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **settings,
    }
    config = AutoConfig.for_model(family, **facts)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)  # otherwise all prompts look alike to a random model
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.convert_tokens_to_ids("<|end|>"), pad_token_id=tokenizer.pad_token_id
    )
    return model.eval()


@pytest.fixture(scope="session")
def llama(tokenizer):
    return build_model("llama", tokenizer)


@pytest.fixture(scope="session", params=FAMILIES)
def any_model(request, tokenizer):
    return build_model(request.param, tokenizer)


@pytest.fixture
def model_folder(tmp_path, tokenizer, llama) -> Path:
    """A saved tiny model."""
    folder = tmp_path / "tiny-llama"
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def prompts() -> list[Prompt]:
    """Parallel prompts of very different lengths."""
    words = ["water the plant", "paint", "read the very long and winding letter from the museum", "cook rice", "run"]
    return [
        user_prompt(str(number), language, f"{prefix} {text}", harmful=number % 2 == 0, source="test")
        for number, text in enumerate(words)
        for language, prefix in (("en", "how do I"), ("it", "come posso"), ("sw", "nifanye nini ili"))
    ]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of public evaluation files, where it lies beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared evaluation files are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def _browser(tmp_path_factory):
    import browser

    if not browser.CHROMIUM or not browser.DRIVER:
        pytest.skip("chromium and chromedriver are not installed; scripts/install-debian.sh installs them")
    driver = browser.start_chromium(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture
def chromium(_browser):
    """A browser on an empty page, 900 pixels wide and light, with nothing in its logs."""
    from browser import addresses, complaints, show

    _browser.get("about:blank")
    show(_browser, 900)
    complaints(_browser)
    addresses(_browser)
    return _browser
