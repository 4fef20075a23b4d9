"""Keys and values of rows that come and go, in memory that is kept from step to step.

transformers' `DynamicCache` copies everything in every step, and whoever puts rows beside others or cuts them out
copies everything once more. Here a step writes one column, a newcomer its own row, and the last row takes the place of
one that has gone. All rows end at the same column; what lies left of a row's first is zero, and hidden by the mask.
"""

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

COLUMNS_AHEAD = 64
"""Columns that are made at a time."""


class RowsLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's `keys` and `values`, `[rows, heads, columns, D]`: what shows of two larger tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: Sequence[Tensor] = ()
        self._rows = self._start = self._end = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self._rows, self._end - self._start

    @property
    def reserved(self) -> int:
        """Places for a token that memory is taken for."""
        return self._kept[0].shape[0] * self._kept[0].shape[2] if self._kept else 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append a column or more to every row, and give all that shows."""
        new = key_states.shape[-2]
        self.reserve(self._rows, 0, new, (key_states, value_states))
        for kept, states in zip(self._kept, (key_states, value_states), strict=True):
            kept[: self._rows, :, self._end : self._end + new] = states
        self.show(self._rows, self.shape[1] + new, moved=new)
        return self.keys, self.values

    def reserve(self, rows: int, left: int, right: int, like: tuple[Tensor, Tensor]) -> None:
        """Take memory for so many rows, `left` columns before the end and `right` behind it, where it is not there."""
        fits = self._kept and self._kept[0].shape[0] >= rows and self._end + right <= self._kept[0].shape[2]
        if not fits or self._end < left:
            self._lay_out(max(rows, self._rows), max(left, self.shape[1]), right, like)

    def write(self, keys: Tensor, values: Tensor, first: int) -> None:
        """Put newcomers at the reserved rows from `first` on, ending where all do; they do not show before `show`."""
        rows, begin = slice(first, first + len(keys)), self._end - keys.shape[-2]
        for kept, states in zip(self._kept, (keys, values), strict=True):
            kept[: self._rows, :, begin : self._start] = 0
            kept[rows, :, :begin] = 0
            kept[rows, :, begin : self._end] = states

    def show(self, rows: int, width: int, *, moved: int = 0) -> None:
        """Show the first rows and the last columns, once the end has moved."""
        self._rows, self._end = rows, self._end + moved
        self._start = self._end - width
        self.keys, self.values = (kept[:rows, :, self._start : self._end] for kept in self._kept)

    def move(self, moves: Sequence[tuple[int, int]]) -> None:
        """Copy rows over others: from, to."""
        for kept in self._kept:
            for source, target in moves:
                kept[target] = kept[source]

    def fit(self) -> None:
        """Give memory back where a third of it or more is not needed any more."""
        rows, width = self.shape
        if 2 * self.reserved > 3 * rows * (width + COLUMNS_AHEAD):
            with suppress(torch.OutOfMemoryError):  # there is none to tidy up with, but nothing depends on it
                self._lay_out(rows, width, 0, (self.keys, self.values))

    def _lay_out(self, rows: int, width: int, right: int, like: tuple[Tensor, Tensor]) -> None:
        """Move what shows into tensors of its own, at the end of `width` columns."""
        used, columns = self.shape
        places = rows, width + right + COLUMNS_AHEAD
        made = [one.new_zeros(places[0], one.shape[1], places[1], one.shape[3]) for one in like]
        for new, old in zip(made, self._kept, strict=False):
            new[:used, :, width - columns : width] = old[:used, :, self._start : self._end]
        self._kept, self._end = made, width
        self.device, self.is_initialized = like[0].device, True
        self.show(used, columns)


class RowsCache(DynamicCache):  # type: ignore[misc]
    """The keys and values of a batch whose rows come and go; it begins without any."""

    layers: list[RowsLayer]

    @property
    def reserved(self) -> int:
        """Places for a token that memory is taken for."""
        return max((layer.reserved for layer in self.layers), default=0)

    def join(self, others: Sequence[DynamicCache]) -> None:
        """Put the rows of other caches behind those that are here; where that fails, nothing has changed.

        Raises:
            RuntimeError: There is no memory for them.
        """
        others = [other for other in others if len(other.layers[0].keys)]
        if not others:
            return
        layers = self.layers or [RowsLayer() for _ in others[0].layers]
        before = rows, width = layers[0].shape
        after = rows + sum(len(other.layers[0].keys) for other in others)
        widest = max(other.get_seq_length() for other in others)
        for layer, like in zip(layers, others[0].layers, strict=True):
            layer.reserve(after, widest, 0, (like.keys, like.values))
        for other in others:
            for layer, new in zip(layers, other.layers, strict=True):
                layer.write(new.keys, new.values, rows)
            rows += len(other.layers[0].keys)
        try:
            for layer in layers:
                layer.show(rows, max(width, widest))
        except BaseException:
            for layer in self.layers:
                layer.show(*before)
            raise
        self.layers = layers

    def keep(self, moves: Sequence[tuple[int, int]], rows: int, width: int) -> None:
        """Copy rows over others (from, to), then keep the first rows and the last columns."""
        if not rows:
            self.layers = []
        for layer in self.layers:  # one after the other, so that memory holds one layer twice at most
            layer.move(moves)
            layer.show(rows, width)
            layer.fit()

    def take_back(self, width: int) -> None:
        """Undo a step: the columns that it appended in some of the layers."""
        for layer in self.layers:
            rows, wider = layer.shape
            layer.show(rows, width, moved=width - wider)


def rows_of(cache: DynamicCache, rows: Sequence[int]) -> DynamicCache:
    """A cache of some of the rows; a row may come more than once."""
    part = DynamicCache()
    for place, layer in enumerate(cache.layers):
        part.update(layer.keys[list(rows)], layer.values[list(rows)], place)
    return part
