"""The settings of the layer search."""

from typing import Literal

from pydantic import Field

from lasa.files.settings import Settings


class LayerSearchSettings(Settings):
    """Stage 1."""

    prompts: list[str] = Field(
        min_length=1,
        description="Sources of parallel prompts, together one table",
    )
    position: Literal["last", "last_user", "mean_user"] = Field("last", description="Token position to read")
    also_positions: list[Literal["last", "last_user", "mean_user"]] = Field(
        default_factory=list, description="Further positions to search, from the same pass, for information"
    )
    layer: int | None = Field(None, ge=0, description="Use this layer instead of the one that the search finds")
    resamples: int = Field(1000, ge=50, le=100_000, description="Bootstrap resamples over queries")
