"""What a piece of code holds in memory, on tiny models: the largest tensor it makes, and what lives."""

import gc
import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """Measures, within its body, the bytes of the largest tensor of a type that an operation gives."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.bytes = dtype, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = function(*args, **(kwargs or {}))
        made = [one for one in tree_leaves(given) if isinstance(one, torch.Tensor) and one.dtype == self.dtype]
        self.bytes = max([self.bytes, *(one.nbytes for one in made)])
        return given


class Operations(TorchDispatchMode):
    """Counts, within its body, how often each operation is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[str(function.overloadpacket)] += 1
        return function(*args, **(kwargs or {}))


class MostAlive(TorchDispatchMode):
    """Measures, within its body, the most bytes that are there at once of what operations make."""

    def __init__(self, besides: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self._besides = {one.untyped_storage().data_ptr() for one in besides}
        self._alive: dict[int, int] = {}
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = function(*args, **(kwargs or {}))
        for one in tree_leaves(given):
            if isinstance(one, torch.Tensor):
                self._count(one.untyped_storage())
        self.bytes = max(self.bytes, sum(self._alive.values()))
        return given

    def _count(self, storage: torch.UntypedStorage) -> None:
        name = storage._cdata
        if storage.nbytes() and name not in self._alive and storage.data_ptr() not in self._besides:
            self._alive[name] = storage.nbytes()
            weakref.finalize(storage, self._alive.pop, name)


class SavedForBackward(saved_tensors_hooks):
    """Counts, within its body, the bytes that autograd keeps for the way back, those of some tensors left out."""

    def __init__(self, besides: Iterable[torch.Tensor] = ()) -> None:
        self._storages = {one.untyped_storage().data_ptr(): one for one in besides}
        self._besides = sum(one.untyped_storage().nbytes() for one in self._storages.values())
        super().__init__(self._keep, lambda saved: saved)

    def __enter__(self) -> "SavedForBackward":
        super().__enter__()
        return self

    def _keep(self, saved: torch.Tensor) -> torch.Tensor:
        self._storages.setdefault(saved.untyped_storage().data_ptr(), saved)  # kept alive, or the place is used again
        return saved

    @property
    def bytes(self) -> int:
        return sum(one.untyped_storage().nbytes() for one in self._storages.values()) - self._besides


class LiveModels:
    """Counts the models that were loaded and are still alive, each time that another is loaded."""

    def __init__(self, monkeypatch, *modules: Any) -> None:
        self.loaded: list[weakref.ref] = []
        self.alive_before: list[int] = []
        for module in modules:
            monkeypatch.setattr(module, "load_model", self._counting(module.load_model))

    def _counting(self, load):
        def counted(*args, **kwargs):
            self.alive_before.append(self.alive)
            model, tokenizer = load(*args, **kwargs)
            self.loaded.append(weakref.ref(model))
            return model, tokenizer

        return counted

    @property
    def alive(self) -> int:
        return sum(ref() is not None for ref in self.loaded)


def live_optimizers() -> int:
    """Optimisers that something still refers to."""
    return sum(issubclass(type(one), torch.optim.Optimizer) for one in gc.get_objects())
