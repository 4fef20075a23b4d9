"""Which model, and how it is loaded."""

from datetime import date
from typing import Any, Literal

from pydantic import Field, field_validator

from lasa.files.settings import Settings, resource

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class ModelSettings(Settings):
    """A model as its user names it."""

    path: str = Field(description="Local folder, Hugging Face id, GGUF file, or `embedded`")
    revision: str | None = Field(None, description="Commit, tag or branch of a Hugging Face id")
    dtype: Dtype = Field(
        "auto", description="Of the weights; `auto` is as stored, and on a CPU without native bfloat16 float32"
    )
    device: str = resource(
        "auto",
        description="`auto` (to read and answer every GPU there is, to train one, else the CPU) or a torch device",
    )
    attention: Literal["eager", "sdpa", "flash_attention_2", "flex_attention"] | None = Field(
        None, description="Attention kernel; transformers' choice by default"
    )
    four_bit: bool = Field(False, description="Hold the weights in 4 bits (NF4); needs bitsandbytes and a GPU")
    trust_remote_code: bool = Field(False, description="Run code that the model folder brings along")
    chat_template: str | None = Field(
        None, description="Jinja file (or text) to render chats with, instead of the tokenizer's own template"
    )
    template_options: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="Variables of the chat template, such as enable_thinking: false"
    )
    template_date: date | None = Field(
        None, description="Date that a template which prints today's is pinned to; today by default"
    )

    @field_validator("template_options")
    @classmethod
    def _names(cls, value: dict[str, bool | int | float | str]) -> dict[str, bool | int | float | str]:
        for name in value:
            if not name.isidentifier():
                raise ValueError(f"{name!r} cannot be the name of a template's variable")
        return value

    @property
    def loading(self) -> dict[str, Any]:
        """What is asked for of how the weights are held and computed with, whichever model it is; defaults left out."""
        how = ("dtype", "device", "attention", "four_bit", "trust_remote_code")
        return {
            name: getattr(self, name) for name in how if getattr(self, name) != type(self).model_fields[name].default
        }

    def rendering_like(self, sealed: str) -> "ModelSettings":
        """These settings with the chat template that an interpreter was trained with, where none is asked for."""
        return self.model_copy(update={"chat_template": self.chat_template or sealed or None})
