"""LASA: language-agnostic safety for multilingual language models (arXiv 2604.12710).

The modules are the algorithm, in order: `prompts` -> `hidden_states` -> `bottleneck` -> `interpreter` ->
`conditioning` -> `alignment` -> `guard` -> `evaluation` -> `report`. Importing `lasa` loads none of them.
"""

__version__ = "0.1.0"
