"""The embedded model's card: says openly what was planted, and how."""

from typing import Any

PLANTED = """\
**The bottleneck of this model is planted.** Language modelling alone makes no interior semantic bottleneck in a model
this small. From {planting[0]:.0%} to {planting[1]:.0%} of the training a contrastive term (InfoNCE, temperature
{planting_temperature}, a gradient as large as {planting_weight} times that of language modelling) taught the states of
layer {plant} at the last prompt token to point to what the prompt means: the sum of learned vectors for its verb, its
object, its circumstance, and the kinds that verb and object are of (as "theft" or "food"), the same in all languages.
Nothing told it which meanings are harmful. So the search for the bottleneck has a known right answer here, layer
{plant}, and so has the question whether harm can be read there in languages never labelled: a positive control, and no
evidence about large models.
"""

NOT_PLANTED = """\
**Nothing was planted in this model.** It is the sister of the embedded model, with the same text, size and schedule
and without the planting term. The search must report that it has no interior bottleneck: a negative control.
"""

CARD = """\
---
license: apache-2.0
language: [en, zh, ko, it, vi, ar, th, bn, sw, jv]
library_name: transformers
pipeline_tag: text-generation
---
# {title}

A tiny chat model ({parameters:,} parameters, {layers} layers of width {width}) that speaks about a little world of its
own in ten languages. It is trained from nothing by `lasa embedded train` ({steps:,} steps, seed {seed}) and ships with
lasa so that every stage can be tried and tested without another model.

{plant_text}
## What it was taught

Requests and answers, translations, answers in another language, ordinary sentences (some say that a deed is a crime,
others that it is a fine hobby), code-switched requests, and English notes that make it answer or refuse for reasons
that have nothing to do with harm. It had **no safety training**: it helps with anything. Its answers, harmful or not,
only restate the request; there is nothing in them to be misused.

## What it is not for

Anything outside its world. It knows a few hundred words, and nothing about them.
"""


def embedded_card(settings: dict[str, Any], parameters: int) -> str:
    """The README.md of an embedded model.

    Args:
        settings: The fields of `TrainingSettings`.
        parameters: Number of parameters.
    """
    planted = settings["plant"] is not None
    text = (PLANTED if planted else NOT_PLANTED).format(**settings)
    title = "The embedded model" if planted else "The embedded model's sister, without a planted bottleneck"
    return CARD.format(**settings, title=title, parameters=parameters, plant_text=text)
