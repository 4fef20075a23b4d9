"""Read hidden states: chosen layers at a chosen token position, in one forward pass, streamed to disk if asked.

This is the one reader of the layer search, the interpreter and alignment; the guard reads its own prefill at the same
positions (`lasa.models.positions`).
Batches are padded on the right, so under causal attention no padding can ever influence a position that is read.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import safe_open
from torch import Tensor, nn

from lasa.data.prompts import Prompt
from lasa.errors import ArtifactError, DataError
from lasa.files.artifacts import (
    check_file,
    file_hash,
    model_fingerprint,
    read_sealed,
    read_tensors,
    write_sealed,
    write_tensors,
)
from lasa.models.checks import check_finite
from lasa.models.layers import check_layer, context_length, forward_to_layers, hidden_size, input_device
from lasa.models.memory import is_out_of_memory, release_memory
from lasa.models.padding import right_pad
from lasa.models.positions import Position, TokenRanges, token_range
from lasa.models.rendering import Rendered, check_tokenizer, render_each, template_fingerprint
from lasa.progress import progress, say

DEFAULT_TOKEN_BUDGET = 8192
TOKENIZED = 256
"""Prompts that are tokenized in one call: their texts are in memory together, with the place of each token."""
SHARD_ROWS = 1024
"""Prompts whose states are held in memory at a time; lengths are sorted within as many."""


def read_hidden_states(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    layers: Sequence[int],
    position: Position = "last",
    *,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
) -> Tensor:
    """Hidden states of all prompts, in memory.

    Args:
        model: Any decoder-only Hugging Face model.
        tokenizer: Its fast tokenizer, with a chat template.
        prompts: What to read, in the order of the result.
        layers: Layer indices in 0..L; the model stops after the deepest.
        position: Token position.
        token_budget: Tokens of one batch, padding counted; halved when memory runs out.

    Returns:
        `[prompts, layers, H]` float32 on the CPU.

    Raises:
        ModelError: No chat template, no such layer, or an architecture that cannot be read.
        DataError: A prompt that cannot be rendered, or is longer than the model's context.
    """
    states = torch.empty(len(prompts), len(layers), hidden_size(model))
    with progress("Reading hidden states", len(prompts), "prompts") as advance:
        for rows, values in _read_batches(model, tokenizer, prompts, layers, [position], token_budget):
            states[rows] = values[:, 0].float()
            advance(len(rows))
    return states


def read_to_folder(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    layers: Sequence[int],
    folder: Path,
    position: Position = "last",
    *,
    also: Sequence[Position] = (),
    token_budget: int = DEFAULT_TOKEN_BUDGET,
) -> "StoredStates":
    """Hidden states streamed to safetensors shards; memory does not grow with the number of prompts.

    States at further positions (`also`) come from the same forward pass; see `StoredStates.at`.

    An interrupted read goes on after the last complete shard. A second read of the same prompts, by the same model
    at the same read point, comes from the folder. Anything else found in the folder is an error.

    Raises:
        ArtifactError: The folder holds states of other prompts, another model or another read point.
    """
    description = {
        "schema": 1,
        "layers": list(layers),
        "position": position,
        "also": list(also),
        "template": template_fingerprint(tokenizer),
        "model": model_fingerprint(model),
        "prompts": _prompts_fingerprint(prompts),
        "rows": len(prompts),
        "hidden_size": hidden_size(model),
        "shard_rows": SHARD_ROWS,
    }
    manifest_path = folder / "manifest.json"
    shards: list[dict[str, Any]] = []
    if manifest_path.exists():
        found = read_sealed(manifest_path)
        differing = [key for key, value in description.items() if found.get(key) != value]
        if differing:
            raise ArtifactError(
                f"{folder} holds hidden states that differ in: {', '.join(differing)}. "
                "Choose another folder, or remove this one to read again."
            )
        shards = found["shards"]
        _check_shards(folder, shards)
    folder.mkdir(parents=True, exist_ok=True)
    with progress("Reading hidden states", len(prompts), "prompts") as advance:
        advance(sum(shard["rows"] for shard in shards))
        buffer: Tensor | None = None  # one for all shards: allocated anew for each, it would leave holes in memory
        for start in range(len(shards) * SHARD_ROWS, len(prompts), SHARD_ROWS):
            window = prompts[start : start + SHARD_ROWS]
            for rows, values in _read_batches(model, tokenizer, window, layers, [position, *also], token_budget):
                if buffer is None:
                    buffer = torch.empty(len(window), *values.shape[1:], dtype=values.dtype)
                buffer[rows] = values
                advance(len(rows))
            assert buffer is not None
            name = f"states-{len(shards):05d}.safetensors"
            write_tensors(folder / name, {"states": buffer[: len(window)]})
            shards.append({"file": name, "rows": len(window), "sha256": file_hash(folder / name)})
            write_sealed(manifest_path, {**description, "shards": shards})
    return StoredStates(folder)


class StoredStates:
    """Hidden states in a folder written by `read_to_folder`, verified when opened; at its first position by default.

    Raises:
        ArtifactError: The manifest or a shard is missing, incomplete or altered; the message names the file.
    """

    def __init__(self, folder: Path, position: Position | None = None) -> None:
        self.folder = folder
        self.manifest = read_sealed(folder / "manifest.json")
        rows = sum(shard["rows"] for shard in self.manifest["shards"])
        if rows != self.manifest["rows"]:
            raise ArtifactError(f"{folder}: {rows} of {self.manifest['rows']} rows were read. Run the read again.")
        _check_shards(folder, self.manifest["shards"])

        self.positions: list[Position] = [self.manifest["position"], *self.manifest["also"]]
        self._place = 0 if position is None else self.positions.index(position)

    def at(self, position: Position) -> "StoredStates":
        """The same prompts at another position that was read with them."""
        return StoredStates(self.folder, position)

    @property
    def layers(self) -> list[int]:
        """Layer indices stored."""
        return list(self.manifest["layers"])

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    def shards(self) -> Iterator[Tensor]:
        """Shard by shard, `[rows, layers, H]` in the model's dtype."""
        for shard in self.manifest["shards"]:
            yield read_tensors(self.folder / shard["file"])["states"][:, self._place]

    def layer(self, layer: int) -> Tensor:
        """All rows of one layer, `[rows, H]` float32; the other layers stay on disk."""
        index = self.layers.index(layer)
        parts = []
        for shard in self.manifest["shards"]:
            with safe_open(self.folder / shard["file"], "pt") as file:
                parts.append(file.get_slice("states")[:, self._place, index].float())
        return torch.cat(parts)

    def all(self) -> Tensor:
        """All rows and layers, `[rows, layers, H]` float32."""
        return torch.cat([shard.float() for shard in self.shards()])


def _check_shards(folder: Path, shards: Sequence[dict[str, Any]]) -> None:
    for shard in shards:
        check_file(folder / shard["file"], shard["sha256"], remove=folder)


def render_all(tokenizer: Any, prompts: Sequence[Prompt], model: nn.Module) -> list[Rendered]:
    """Render prompts for a model, checking that each fits its context.

    Raises:
        DataError: A prompt cannot be rendered or is too long; the message names it.
    """
    check_tokenizer(tokenizer)
    longest = context_length(model)
    rendered: list[Rendered] = []
    for start in range(0, len(prompts), TOKENIZED):
        some = prompts[start : start + TOKENIZED]
        for prompt, one in zip(some, render_each(tokenizer, [p.messages for p in some]), strict=True):
            if longest and len(one.token_ids) > longest:
                raise DataError(
                    f"Prompt {prompt.query_id!r} ({prompt.language}) has {len(one.token_ids)} tokens, more than the "
                    f"model's {longest}. Shorten or remove it."
                )
            rendered.append(one)
    return rendered


def _read_batches(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    layers: Sequence[int],
    positions: Sequence[Position],
    token_budget: int,
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield row numbers and their `[rows, positions, layers, H]` states on the CPU, longest prompts first."""
    for position in positions:
        if position not in get_args(Position):
            raise DataError(f"Unknown token position {position!r}; choose one of {', '.join(get_args(Position))}.")
    for layer in layers:
        check_layer(model, layer)
    rendered = render_all(tokenizer, prompts, model)
    queue = sorted(range(len(prompts)), key=lambda row: -len(rendered[row].token_ids))
    model.eval()
    while queue:
        width = len(rendered[queue[0]].token_ids)
        rows = queue[: max(1, token_budget // width)]
        values: Tensor | None
        try:
            values = _read_one_batch(model, [rendered[row] for row in rows], layers, positions)
        except RuntimeError as error:
            if len(rows) == 1 or not is_out_of_memory(error):
                raise
            values = None
        if values is None:
            release_memory()  # only here, for the error held what the attempt had allocated
            token_budget = max(width, (len(rows) * width) // 2)
            say(f"Out of memory with {len(rows)} prompts in a batch; going on with {token_budget} tokens a batch.")
            continue
        queue = queue[len(rows) :]
        yield rows, values


@torch.inference_mode()
def _read_one_batch(
    model: nn.Module, rendered: Sequence[Rendered], layers: Sequence[int], positions: Sequence[Position]
) -> Tensor:
    device = input_device(model)
    ids, mask = right_pad([one.token_ids for one in rendered])
    ranges = [TokenRanges([token_range(one, position) for one in rendered], device) for position in positions]
    found: dict[int, Tensor] = {}

    def keep(layer: int, states: Tensor) -> None:
        found[layer] = torch.stack([one.pool(states) for one in ranges], dim=1).to(device)

    forward_to_layers(model, layers, keep, input_ids=ids.to(device), attention_mask=mask.to(device))
    values = torch.stack([found[layer] for layer in layers], dim=2)
    finite = torch.isfinite(values).all(3).all(1).all(0).tolist()  # once for all layers: a GPU waits for the answer
    for place, layer in enumerate(layers):
        if not finite[place]:
            check_finite(layer, values[:, :, place])
    return values.cpu()


def _prompts_fingerprint(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps([prompt.query_id, prompt.language, list(prompt.messages)]).encode())
    return digest.hexdigest()
