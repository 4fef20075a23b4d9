"""What stage 3 reads beside a model and an interpreter."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lasa.data.preferences import Preference
from lasa.data.prompts import Prompt
from lasa.data.refusals import Refusals, read_refusals


@dataclass(frozen=True)
class AlignmentTables:
    """What stage 3 reads.

    Attributes:
        preferences: What to learn from.
        harmless: Harmless text in any language, for a system that learns to refuse from it.
        refusals: What that text is answered with.
        probes: Labelled prompts on which the interpreter's drift is measured, and its thresholds are fitted again.
        probe_states: The base's states of them at the interpreter's read point, `[probes, H]`; None: to be read.
        parallel: Parallel prompts, for a consistency term.
        benign: Benign prompts on which the perplexity is measured before and after.
        calibration: Benign prompts that join the probes where thresholds are fitted again.
    """

    preferences: Sequence[Preference]
    probes: Sequence[Prompt] = ()
    parallel: Sequence[Prompt] = ()
    benign: Sequence[Prompt] = ()
    calibration: Sequence[Prompt] = ()
    harmless: Sequence[Prompt] = ()
    refusals: Refusals = field(default_factory=read_refusals)
    probe_states: Tensor | None = None
