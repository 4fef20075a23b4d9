"""A system: a model, and the interpreter that guards it, loaded together or not at all."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lasa.conditioning.condition import DEFAULT_CONDITION
from lasa.conditioning.decision import Action, Policy
from lasa.errors import ArtifactError, GuardError
from lasa.guard.guard import Guard
from lasa.interpreter.probe import SafetySemanticInterpreter, load_interpreter
from lasa.models.loading import load_model
from lasa.models.settings import ModelSettings


@dataclass(frozen=True)
class System:
    """What answers, and what guards it.

    Attributes:
        name: What it is called in results.
        model: Which model, and how it is loaded.
        interpreter: Folder of the interpreter that fits it, or None.
        guarded: Whether it is evaluated behind the guard.
        condition: The conditional text.
        action: What the guard does with what it flags, where no policy says otherwise.
        aligned: Whether the model was trained on top of the interpreter's base.
        base: Fingerprint of the model that an aligned folder was trained from; empty where it does not say.
        forced: The interpreter is also paired with a model that it was not trained on.
    """

    name: str
    model: ModelSettings
    interpreter: Path | None = None
    guarded: bool = False
    condition: str = DEFAULT_CONDITION
    action: Action = "condition"
    aligned: bool = False
    base: str = ""
    forced: bool = False

    def load(self, policy: Policy | None = None) -> tuple[Any, Any, Guard | None]:
        """Model, tokenizer, and the guard where the system is evaluated behind one.

        Raises:
            LasaError: The model cannot be loaded, or the interpreter does not fit it.
        """
        if not self.guarded:
            return (*load_model(self.model), None)
        guard = self.guard(policy)
        return guard.model, guard.tokenizer, guard

    def guard(self, policy: Policy | None = None) -> Guard:
        """The guard over the model, whether or not it is evaluated behind one.

        Args:
            policy: Actions; the system's own condition is kept.

        Raises:
            GuardError: There is no interpreter; nothing is served without a guard.
            ArtifactError: The interpreter belongs to another model.
        """
        probe = load_interpreter(self.interpreter_folder)
        network, tokenizer = load_model(self.model.rendering_like(probe.config.chat_template))
        return self.guard_over(network, tokenizer, probe, policy)

    def guard_over(
        self, network: Any, tokenizer: Any, probe: SafetySemanticInterpreter, policy: Policy | None = None
    ) -> Guard:
        """The guard over the system's model and interpreter, which are loaded already; see `guard`."""
        if self.base and self.base != probe.config.base_fingerprint and not self.forced:
            raise ArtifactError(
                f"{self.model.path} was aligned from another base model than the one that the interpreter in "
                f"{self.interpreter} reads. Give the interpreter of its run, or force the pairing (--force)."
            )
        policy = policy or Policy(harmful=self.action, controversial=self.action)
        aligned = self.aligned or self.forced
        return Guard(network, tokenizer, probe, replace(policy, condition=self.condition), aligned=aligned)

    @property
    def interpreter_folder(self) -> Path:
        """The folder of the interpreter.

        Raises:
            GuardError: There is none.
        """
        if self.interpreter is None:
            raise GuardError("A guard needs an interpreter. Give --run RUN, or --model DIR with --interpreter DIR.")
        return self.interpreter
