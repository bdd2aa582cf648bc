"""Host memory that holds a copy of what this process saves, while training goes on over the original."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bigtrain.checkpoint.planners import Holding, state_dict


class Staging:
    """One block, made for the first save and used by all: as large as what is saved, and no larger.

    Beside a GPU it is pinned where the system allows: torch's own pinned memory would be rounded up to a power of two.
    """

    def __init__(self, held: Sequence[Holding]) -> None:
        block = np.empty(sum(h.values.numel() for h in held), np.float32)
        self.nbytes = block.nbytes
        self._on_gpu = any(h.values.is_cuda for h in held)
        if self._on_gpu:
            torch.cuda.cudart().cudaHostRegister(block.ctypes.data, block.nbytes, 0)
        self._copies: dict[str, Tensor] = {}
        begin = 0
        for name, values in state_dict(held).items():
            count = values.numel()  # from the buffer, so that each is a storage of its own: torch saves whole storages
            flat = torch.frombuffer(block, dtype=torch.float32, count=count, offset=begin * 4)
            self._copies[name] = flat.view(values.shape)
            begin += count

    def copy(self, held: Sequence[Holding]) -> dict[str, Tensor]:
        """Copy what is held, and give the copies by name, in float32; those of the call before are overwritten."""
        for name, values in state_dict(held).items():
            self._copies[name].copy_(values, non_blocking=self._on_gpu)
        if self._on_gpu:
            torch.cuda.synchronize()
        return self._copies
