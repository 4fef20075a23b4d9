r"""What the operator sets, in vLLM's own arguments.

vllm serve MODEL \
        --additional-config '{"lasa": {"interpreter": "path/to/interpreter"}}' \
        --logits-processors lasa_vllm.processor_v1:ConditionProcessor \
        --scheduler-cls lasa_vllm.scheduler.guarded_scheduler

"""

from typing import TYPE_CHECKING

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from lasa.conditioning.condition import DEFAULT_CONDITION
from lasa.errors import GuardError
from lasa.interpreter.probe import InterpreterConfig

if TYPE_CHECKING:
    from vllm.config import VllmConfig


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """The value of `lasa` in `--additional-config`.

    Attributes:
        interpreter: Interpreter folder, or id on the Hugging Face Hub.
        condition: The conditional text.
        hide_condition: Leave the condition out of the answer.
        opt_out: Let a request switch the guard off for itself, with `vllm_xargs: {"lasa": "off"}`.
        force: Also read a model that the interpreter was not trained on.
        answered: Kinds of harm (see `lasa.data.harm`) that are answered as if they were none, where they are named.
        read_answers: Read answers, too, and stop those that the interpreter's head for answers finds harmful.
    """

    interpreter: str
    condition: str = DEFAULT_CONDITION
    hide_condition: bool = True
    opt_out: bool = False
    force: bool = False
    answered: tuple[str, ...] = ()
    read_answers: bool = False


def read_settings(vllm_config: "VllmConfig") -> Settings:
    """The settings of an engine.

    Raises:
        GuardError: There are none, or they are wrong; nothing is served without a guard.
    """
    additional = vllm_config.additional_config
    value = additional.get("lasa") if isinstance(additional, dict) else None
    if value is None:
        raise GuardError(
            "lasa-vllm is installed, but no interpreter is configured, so nothing is served. Give "
            '--additional-config \'{"lasa": {"interpreter": "FOLDER"}}\', or set VLLM_PLUGINS= (empty) in the '
            "environment to serve without a guard."
        )
    try:
        return TypeAdapter(Settings).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("lasa", *first["loc"])))
        raise GuardError(f"--additional-config is wrong at {where!r}: {first['msg']}.") from error


def answered_kinds(settings: Settings, config: InterpreterConfig) -> list[int]:
    """The numbers of the interpreter's categories that are to be answered.

    Raises:
        GuardError: It does not tell one of them apart.
    """
    names = config.categories.names if config.categories else ()
    strange = sorted(set(settings.answered) - set(names))
    if strange:
        known = f"it tells apart {', '.join(names)}" if names else "it was trained without labels of categories"
        raise GuardError(f"`answered` names {strange[0]!r}, which this interpreter does not know: {known}.")
    return [names.index(name) for name in settings.answered]
