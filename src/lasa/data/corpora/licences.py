"""Under which licence each known source is published, as far as its own files say; `NOT_STATED` where they do not."""

NOT_STATED = "not stated"

LICENCES = {
    "embedded": "Apache-2.0",
    "multijail": "MIT",
    "xsafety": "Apache-2.0, research use",
    "harmbench": "MIT",
    "advbench": "MIT",
    "strongreject": "MIT",
    "xstest": "CC BY 4.0",
    "ntrex": "CC BY-SA 4.0",
    "tatoeba": "CC BY 2.0 FR",
    "nusax_mt": "CC BY-SA 4.0",
    "nusax_sentiment": "CC BY-SA 4.0",
    "mgsm": "CC BY 4.0",
    "global_mmlu_lite": "Apache-2.0",
}
"""By the `source` of the prompts."""


def licence_of(source: str) -> str:
    """The licence of a source."""
    return LICENCES.get(source, NOT_STATED)
