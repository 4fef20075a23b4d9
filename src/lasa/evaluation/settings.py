"""The settings of stage 4's evaluation: what is asked, and who judges."""

from pydantic import Field

from lasa.evaluation.judge_settings import JudgeSetting, JudgeSettings, judge_from_text
from lasa.files.settings import Settings, resource
from lasa.models.settings import Dtype


class AnsweringSettings(Settings):
    """How prompts are answered."""

    max_new_tokens: int = Field(256, ge=1, le=32_768, description="Length limit of an answer")
    batch_size: int = resource(64, ge=1, le=4096, description="Prompts answered together, at most")
    batch_tokens: int | None = resource(
        None,
        ge=1,
        description="Tokens of prompts and answers in a batch, at most; None: as its cache has room for",
    )


class JudgingSettings(Settings):
    """How answers are judged."""

    judge_reasoning: bool = Field(False, description="Judge what was thought before an answer as well, apart from it")
    judge_failures: float = Field(
        0.2, ge=0, le=1, description="Share of answers without a verdict because a judge failed at which the run stops"
    )


class EvaluationSettings(AnsweringSettings, JudgingSettings):
    """Stage 4: what is asked, and who judges."""

    benchmarks: dict[str, str] = Field(min_length=1, description="Name and source; the first is the headline")
    judge: JudgeSetting = Field(
        default_factory=lambda: judge_from_text("refusal-patterns"),
        description="embedded-world, refusal-patterns, llm:MODEL@URL, classifier:FORMAT:FOLDER, or its settings",
    )
    second_judge: JudgeSetting | None = Field(None, description="Another judge of the same answers, for agreement")
    dtype: Dtype | None = resource(None, description="Of the weights while answering; None: that of `model`")

    @property
    def judges(self) -> list[JudgeSettings]:
        """One judge, or two."""
        return [self.judge, *([self.second_judge] if self.second_judge else [])]
