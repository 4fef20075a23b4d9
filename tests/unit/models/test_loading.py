"""How a model is named, and how it is loaded."""

import json
import os
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from conftest import TEMPLATE, build_model
from lasa.data.prompts import user_prompt
from lasa.errors import ModelError, RecipeError
from lasa.models import loading
from lasa.models.generation import GenerationSettings, generate
from lasa.models.hidden_states import read_hidden_states
from lasa.models.loading import load_model
from lasa.models.rendering import defuse, render, template_fingerprint

HELLO = ({"role": "user", "content": "hello"},)


def save(folder, tokenizer, **settings):
    model = build_model("llama", tokenizer, layers=2, **settings)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.fixture
def hub(tmp_path, tokenizer, monkeypatch):
    """A cache of the Hub with one model, in two revisions."""
    cache = tmp_path / "hub"
    place = cache / "models--org--tiny"
    for name, commit, seed in (("main", "a" * 40, 0), ("older", "b" * 40, 1)):
        save(place / "snapshots" / commit, tokenizer, seed=seed)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / name).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(cache))
    return place


def first_weight(model):
    return next(model.parameters())


class TestNames:
    def test_an_id_on_the_hub_comes_from_its_cache_in_the_revision_asked_for(self, hub, tokenizer):
        model, _ = load_model("org/tiny")
        older, _ = load_model("org/tiny", revision="older")
        assert torch.equal(first_weight(model), first_weight(build_model("llama", tokenizer, layers=2)))
        assert torch.equal(first_weight(older), first_weight(build_model("llama", tokenizer, layers=2, seed=1)))
        assert model.config._name_or_path == "org/tiny"

    def test_an_adapter_finds_its_base_by_id(self, hub, tokenizer, tmp_path):
        base, _ = load_model("org/tiny")
        adapted = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
        adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
        stored = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert stored["base_model_name_or_path"] == "org/tiny"
        loaded, _ = load_model(str(tmp_path / "adapter"))
        ids = torch.tensor([[3, 5, 7]])
        torch.testing.assert_close(loaded(ids).logits, adapted.eval()(ids).logits)

    def test_the_head_of_a_frozen_base_gets_the_last_states_side_by_side(self, tokenizer, tmp_path):
        base = save(tmp_path / "model", tokenizer)
        base.name_or_path = str(tmp_path / "model")
        get_peft_model(base, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(tmp_path / "adapter")
        model, _ = load_model(str(tmp_path / "adapter"))
        head, seen = model.get_output_embeddings(), []
        assert not head.weight.requires_grad
        head.register_forward_pre_hook(lambda _, given: seen.append((given[0].shape[1], given[0].is_contiguous())))
        generate(model, tokenizer, [[5, 6, 7], [8, 9]], GenerationSettings(max_new_tokens=2))
        assert seen == [(1, True), (1, True)]

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_an_adapter_answers_in_the_type_of_its_model(self, tokenizer, tmp_path, dtype):
        base = save(tmp_path / "model", tokenizer)
        base.name_or_path = str(tmp_path / "model")
        get_peft_model(base, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(tmp_path / "adapter")
        model, _ = load_model(str(tmp_path / "adapter"), dtype=dtype)
        assert {weight.dtype for weight in model.parameters()} == {getattr(torch, dtype)}

    def test_an_adapter_finds_a_local_base_from_any_working_directory(self, tokenizer, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        save(tmp_path / "base", tokenizer)
        base, _ = load_model("base")
        get_peft_model(base, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(tmp_path / "adapter")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        load_model(str(tmp_path / "adapter"))

    @pytest.mark.parametrize("name", ["org/absent", "absent", "folder/of/absent", "absent.gguf"])
    def test_a_model_that_is_nowhere_is_one_message_with_all_that_can_be_named(self, hub, name):
        with pytest.raises(ModelError, match=f"No such model folder: {name}.*GGUF file, or one of: embedded"):
            load_model(name)

    def test_offline_and_not_in_the_cache_says_so(self, hub):
        with pytest.raises(ModelError, match="not in the cache of this machine and cannot be fetched"):
            load_model("org/absent")

    @pytest.mark.parametrize(
        ("error", "told"),
        [("GatedRepoError", "gated.*Accept its terms"), ("RevisionNotFoundError", "has no revision 'v9'")],
    )
    def test_what_the_hub_refuses_is_explained(self, monkeypatch, error, told):
        import httpx
        from huggingface_hub import errors

        def refuse(*_, **__):
            raise getattr(errors, error)("no", response=httpx.Response(403, request=httpx.Request("GET", "http://h")))

        monkeypatch.setattr("lasa.models.origin.snapshot_download", refuse)
        with pytest.raises(ModelError, match=told):
            load_model("org/tiny", revision="v9")


class TestGguf:
    @pytest.fixture
    def file(self, tmp_path, tokenizer):
        gguf = pytest.importorskip("gguf", reason="pip install gguf")
        model = build_model("qwen2", tokenizer, layers=2, tie_word_embeddings=False)
        facts = model.config
        writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "qwen2")
        writer.add_context_length(facts.max_position_embeddings)
        writer.add_embedding_length(facts.hidden_size)
        writer.add_block_count(facts.num_hidden_layers)
        writer.add_feed_forward_length(facts.intermediate_size)
        writer.add_head_count(facts.num_attention_heads)
        writer.add_head_count_kv(facts.num_key_value_heads)
        writer.add_layer_norm_rms_eps(facts.rms_norm_eps)
        writer.add_rope_freq_base(10_000.0)
        backend = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        tokens = sorted(backend["vocab"], key=backend["vocab"].get)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
        writer.add_token_types([3 if token.startswith("<") and len(token) > 1 else 1 for token in tokens])
        writer.add_token_merges([" ".join(pair) for pair in backend["merges"]])
        for name in ("bos", "eos", "pad"):
            getattr(writer, f"add_{name}_token_id")(getattr(tokenizer, f"{name}_token_id"))
        writer.add_chat_template(TEMPLATE)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, facts.num_hidden_layers)
        for name, value in model.state_dict().items():
            writer.add_tensor(names.get_name(name, (".weight", ".bias")), value.numpy().astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "tiny.gguf", model

    def test_it_is_read_like_the_model_that_it_was_made_from(self, file, tokenizer):
        path, model = file
        loaded, own = load_model(str(path), dtype="float32")
        prompt = [user_prompt("a", "en", "how do I water the plant")]
        assert render(own, prompt[0].messages) == render(tokenizer, prompt[0].messages)
        expected = read_hidden_states(model, tokenizer, prompt, [1, 2])
        torch.testing.assert_close(read_hidden_states(loaded, own, prompt, [1, 2]), expected, atol=1e-4, rtol=1e-4)

    def test_without_the_package_it_says_what_to_install(self, file, monkeypatch):
        monkeypatch.setattr(loading.AutoTokenizer, "from_pretrained", _raise(ImportError("no gguf")))
        with pytest.raises(ModelError, match="pip install gguf"):
            load_model(str(file[0]))

    def test_an_architecture_that_cannot_be_read_is_one_message(self, tmp_path):
        gguf = pytest.importorskip("gguf", reason="pip install gguf")
        writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "clip")
        writer.add_block_count(1)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        with pytest.raises(ModelError, match=r"odd.gguf.*(not read as GGUF|transformers knows)"):
            load_model(str(tmp_path / "odd.gguf"))


def _raise(error):
    def fail(*_, **__):
        raise error

    return fail


class TestTemplates:
    THINKING = "{% if enable_thinking is defined and not enable_thinking %}<|system|>off<|end|>{% endif %}" + TEMPLATE
    DATED = "<|system|>Today is {{ strftime_now('%d %b %Y') }}.<|end|>" + TEMPLATE

    @pytest.fixture
    def folder(self, tokenizer, tmp_path):
        save(tmp_path / "model", tokenizer)
        return tmp_path / "model"

    def write(self, folder, template):
        (folder / "chat_template.jinja").write_text(template)

    def test_a_model_without_one_is_given_a_file(self, folder, tmp_path):
        (folder / "chat_template.jinja").unlink()
        with pytest.raises(ModelError, match=r"has no chat template.*give a Jinja file as chat_template"):
            load_model(str(folder))
        (tmp_path / "chat.jinja").write_text(TEMPLATE)
        _, tokenizer = load_model(str(folder), chat_template=str(tmp_path / "chat.jinja"))
        assert tokenizer.decode(render(tokenizer, HELLO).token_ids) == "<s><|user|>hello<|end|><|assistant|>"

    @pytest.mark.parametrize(
        ("text", "told"), [("{% for m in messages %}", "line 1"), ("{{ raise_exception('no') }}", "no")]
    )
    def test_a_file_with_an_error_in_it_is_named_with_the_line(self, folder, tmp_path, text, told):
        (tmp_path / "chat.jinja").write_text(text)
        with pytest.raises(ModelError, match=told):
            load_model(str(folder), chat_template=str(tmp_path / "chat.jinja"))
        with pytest.raises(ModelError, match=r"absent\.jinja cannot be read"):
            load_model(str(folder), chat_template="absent.jinja")

    def test_options_are_part_of_the_rendering_and_its_fingerprint_and_are_saved_with_it(self, folder, tmp_path):
        self.write(folder, self.THINKING)
        _, plain = load_model(str(folder))
        model, off = load_model(str(folder), template_options={"enable_thinking": False})
        assert len(render(off, HELLO).token_ids) > len(render(plain, HELLO).token_ids)
        assert template_fingerprint(off) != template_fingerprint(plain)
        off.save_pretrained(tmp_path / "again")
        model.save_pretrained(tmp_path / "again")
        _, again = load_model(str(tmp_path / "again"))
        assert template_fingerprint(again) == template_fingerprint(off)
        with pytest.raises(ModelError, match="fixed with other options"):
            load_model(str(tmp_path / "again"), template_options={"enable_thinking": True})

    def test_an_option_that_the_template_does_not_look_at_is_refused(self, folder):
        with pytest.raises(ModelError, match="does not look at 'enable_thinking'"):
            load_model(str(folder), template_options={"enable_thinking": False})
        with pytest.raises(RecipeError, match="cannot be the name of a template's variable"):
            load_model(str(folder), template_options={"not a name": 1})

    def test_a_date_is_pinned_to_the_day_of_training_and_said(self, folder, monkeypatch):
        told = []
        monkeypatch.setattr("lasa.models.template.say", told.append)
        self.write(folder, self.DATED)
        _, then = load_model(str(folder), template_date=date(2026, 1, 31))
        _, today = load_model(str(folder))
        assert "31 Jan 2026" in then.decode(render(then, HELLO).token_ids)
        assert template_fingerprint(then) != template_fingerprint(today)
        assert len(told) == 1 and f"pinned to {date.today().isoformat()}" in told[0]

    def test_a_date_that_cannot_be_pinned_is_refused(self, folder):
        self.write(folder, "{{ strftime_now(messages[0]['role']) }}" + TEMPLATE)
        with pytest.raises(ModelError, match="cannot be pinned"):
            load_model(str(folder))

    def test_markers_that_are_plain_text_cannot_be_typed_either(self, folder):
        marked = (
            "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
            "{% elif m['role'] == 'system' %}<<SYS>>{{ m['content'] }}<</SYS>>"
            "{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
        )
        self.write(folder, marked)
        _, tokenizer = load_model(str(folder))
        assert defuse(tokenizer, "a [/INST] b") == "a [ /INST] b"
        assert defuse(tokenizer, "a [/INST] b", markers=False) == "a [/INST] b"
        assert defuse(tokenizer, "<<SYS>>a<</SYS>>") == "< <SYS>>a< </SYS>>"


class TestNumbers:
    @pytest.mark.parametrize(
        ("device", "native", "stored", "dtype"),
        [
            ("cpu", False, torch.bfloat16, torch.float32),
            ("cpu", True, torch.bfloat16, torch.bfloat16),
            ("auto", True, torch.bfloat16, torch.bfloat16),
            ("auto", True, torch.float32, torch.float32),
            ("auto", True, torch.float16, torch.float32),
            ("cuda", False, torch.bfloat16, torch.bfloat16),
            ("cuda:1", False, torch.bfloat16, torch.bfloat16),
            ("mps", False, torch.bfloat16, torch.bfloat16),
        ],
    )
    def test_weights_are_as_stored_where_the_device_multiplies_them_and_else_float32(
        self, device, native, stored, dtype, tokenizer, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(loading, "cpu_multiplies_bfloat16", lambda: native)
        build_model("llama", tokenizer, layers=1).to(dtype=stored).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        monkeypatch.setattr(PreTrainedModel, "to", lambda model, place: model)  # there is no such device here
        assert load_model(str(tmp_path), device=device)[0].dtype == dtype
        assert load_model(str(tmp_path), device=device, dtype="float16")[0].dtype == torch.float16

    @pytest.mark.parametrize("layer", [1, 2])
    def test_a_layer_that_overflows_is_named_with_the_dtype_when_the_model_is_loaded(self, layer, tokenizer, tmp_path):
        model = build_model("llama", tokenizer, layers=2)
        with torch.no_grad():
            model.model.layers[layer - 1].mlp.down_proj.weight.mul_(1e6)
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        load_model(str(tmp_path))
        with pytest.raises(ModelError, match=rf"Layer {layer} .* in float16.* bfloat16 or float32"):
            load_model(str(tmp_path), dtype="float16")

    def test_a_prompt_on_which_a_layer_overflows_ends_the_reading(self, tokenizer):
        model = build_model("llama", tokenizer, layers=2)
        rare = tokenizer("z", add_special_tokens=False)["input_ids"][0]
        with torch.no_grad():
            model.get_input_embeddings().weight[rare] = float("inf")
        read_hidden_states(model, tokenizer, [user_prompt("a", "en", "how")], [1])
        with pytest.raises(ModelError, match="Layer 1 holds values that are no finite numbers in float32"):
            read_hidden_states(model, tokenizer, [user_prompt("b", "en", "z")], [1])

    def test_the_attention_that_was_asked_for_is_used(self, tokenizer, tmp_path):
        save(tmp_path, tokenizer)
        assert load_model(str(tmp_path), attention="eager")[0].config._attn_implementation == "eager"


class TestAddedTokens:
    def adapter(self, tokenizer, tmp_path, *, trained):
        save(tmp_path / "base", tokenizer)
        base, own = load_model(str(tmp_path / "base"))
        own.add_tokens(["<new>"])
        base.resize_token_embeddings(len(own), mean_resizing=False)
        kept = ["embed_tokens", "lm_head"] if trained else None
        adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=kept))
        adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=trained)
        own.save_pretrained(tmp_path / "adapter")
        return adapted.eval(), own

    def test_an_adapter_that_brings_their_embeddings_is_loaded(self, tokenizer, tmp_path):
        adapted, own = self.adapter(tokenizer, tmp_path, trained=True)
        loaded, _ = load_model(str(tmp_path / "adapter"))
        ids = torch.tensor([[3, own.convert_tokens_to_ids("<new>")]])
        torch.testing.assert_close(loaded(ids).logits, adapted(ids).logits)

    def test_an_adapter_without_them_is_refused_with_the_reason(self, tokenizer, tmp_path):
        self.adapter(tokenizer, tmp_path, trained=False)
        with pytest.raises(ModelError, match=r"1 tokens more than the model.*no embeddings for them"):
            load_model(str(tmp_path / "adapter"))


def test_special_tokens_are_collected_once_however_many_messages_are_rendered(tokenizer, monkeypatch):
    calls = []
    from lasa.models import rendering

    original = rendering.special_tokens
    monkeypatch.setattr(rendering, "special_tokens", lambda *a, **k: calls.append(a) or original(*a, **k))
    own = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", chat_template=TEMPLATE)
    for _ in range(20):
        render(own, HELLO)
    assert len(calls) == 2  # with and without the template's markers
    own.chat_template = TEMPLATE + " "
    render(own, HELLO)
    assert len(calls) == 4


def test_a_folder_is_named_by_its_whole_path(model_folder, monkeypatch):
    monkeypatch.chdir(model_folder.parent)
    model, _ = load_model(model_folder.name)
    assert Path(model.config._name_or_path) == model_folder.resolve()


def test_every_process_of_a_launch_has_the_weights_that_it_loads(model_folder, monkeypatch):
    """An FSDP configuration asks transformers (before 5.23) to leave zeros to all but the first, for FSDP to fill."""
    whole = load_model(str(model_folder))[0].state_dict()
    variables = {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true", "LOCAL_RANK": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        loaded = load_model(str(model_folder))[0].state_dict()
    finally:
        torch.distributed.destroy_process_group()
    assert all(torch.equal(loaded[name], weight) for name, weight in whole.items())
    assert {name: os.environ[name] for name in variables} == variables  # as the training will ask for them
