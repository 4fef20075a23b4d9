"""`lasa` with a model that is really sharded by FSDP2 on processes without a GPU.

accelerate runs an FSDP configuration as plain DDP where it computes on CPUs, though PyTorch's `fully_shard` works
there. Here accelerate is told that each process has a GPU; nothing else differs from `python -m lasa`.
"""

from accelerate.state import AcceleratorState, DistributedType, PartialState

from parting import run

_init = AcceleratorState.__init__


def _init_with_gpus(self, *args, **kwargs):
    state = PartialState(cpu=True)
    if state.distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    _init(self, *args, **kwargs)


if __name__ == "__main__":
    AcceleratorState.__init__ = _init_with_gpus
    run()
