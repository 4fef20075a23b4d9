"""Which model, and how it is loaded."""

from typing import Literal

from pydantic import Field

from lasa.files.settings import Settings


class ModelSettings(Settings):
    """The base model."""

    path: str = Field(description="Local Hugging Face folder, or `embedded`")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of the weights; `auto` is as stored, and float32 on a CPU"
    )
    device: str = Field("auto", description="`auto` (every GPU there is, else the CPU) or a torch device")
    four_bit: bool = Field(False, description="Hold the weights in 4 bits (NF4); needs bitsandbytes and a GPU")
    trust_remote_code: bool = Field(False, description="Run code that the model folder brings along")
