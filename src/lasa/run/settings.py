"""What a plan is made for: a machine, and the work to do on it."""

from pydantic import Field

from lasa.files.settings import Settings


class Machine(Settings):
    """GPUs of one kind in one machine."""

    gpus: int = Field(1, ge=1, le=1024, description="GPUs of the machine")
    memory: float = Field(80.0, ge=1, description="GiB of each GPU")
    teraflops: float = Field(989.0, ge=1, description="Dense bfloat16 peak of each GPU; the default is an H100's")
    use: float = Field(0.35, gt=0, le=1, description="Share of the peak that training and prefill reach")
    bandwidth: float = Field(3350.0, ge=1, description="Memory bandwidth of each GPU in GB/s")


class Work(Settings):
    """What a run is to do."""

    prompts: int = Field(20_000, ge=1, description="Prompts to read, for layer search and interpreter")
    prompt_tokens: int = Field(128, ge=1, description="Tokens of a prompt")
    rows: int = Field(22_000, ge=1, description="Rows of preferences")
    epochs: float = Field(3.0, gt=0, description="Passes over them")
    row_tokens: int = Field(512, ge=1, description="Longest row in tokens")
    batch: int = Field(4, ge=1, description="Rows per GPU and forward pass")
    answers: int = Field(3150, ge=1, description="Answers to generate in the evaluation")
    answer_tokens: int = Field(256, ge=1, description="Tokens of an answer")
    lora_rank: int = Field(16, ge=1, description="Rank of adapters")
    judge: float = Field(0.0, ge=0, description="Billions of parameters of a local classifier that judges the answers")
