"""`lasa` with a model that is really spread by DeepSpeed's ZeRO-3 over processes without a GPU.

accelerate starts DeepSpeed on GPUs alone, though DeepSpeed itself works without. Here accelerate is told that the
processes talk through gloo and compute on the CPU; nothing else differs from `python -m lasa`.
"""

import torch
from accelerate.state import DistributedType, PartialState

from parting import run

if __name__ == "__main__":
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    run()
