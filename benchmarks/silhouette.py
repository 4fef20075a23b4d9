"""Both silhouettes of every layer against scikit-learn's two calls per layer, on MultiJail's shape."""

import numpy as np
import torch
from harness import Ratio, Scale, interleaved
from sklearn.metrics import silhouette_score

from lasa.bottleneck.geometry import silhouette_samples, unit_vectors

LANGUAGES = 10


def measure(scale: Scale) -> list[Ratio]:
    queries = torch.arange(scale.silhouette_queries).repeat_interleave(LANGUAGES)
    languages = torch.arange(LANGUAGES).repeat(scale.silhouette_queries)
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(len(queries), scale.layers + 1, scale.width, generator=draw)
    labels = (queries, languages)
    layers = range(states.shape[1])

    def ours() -> list[list[float]]:
        units = (unit_vectors(states[:, layer]) for layer in layers)
        return [[float(silhouette_samples(unit, own).mean()) for own in labels] for unit in units]

    def reference() -> list[list[float]]:
        return [
            [float(silhouette_score(states[:, layer].numpy(), own.numpy(), metric="cosine")) for own in labels]
            for layer in layers
        ]

    difference = float(np.abs(np.array(ours()) - np.array(reference())).max())
    seconds = interleaved({"ours": ours, "scikit-learn": reference}, max(1, scale.repeats // 2))
    return [
        Ratio(
            f"scikit-learn / both silhouettes, {len(queries):,} prompts, {len(layers)} layers",
            seconds["scikit-learn"] / seconds["ours"],
            3,
            at_least=True,
            detail=f"{seconds['scikit-learn']:.2f} s / {seconds['ours']:.2f} s",
        ),
        Ratio("largest difference from scikit-learn", difference, 1e-6),
    ]
