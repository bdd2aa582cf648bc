"""What a checkpoint holds, as digests that neither engine has a part in."""

import hashlib
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from bigtrain.verify.legs import Digest


def digest(checkpoint: Path) -> Digest:
    """What a checkpoint holds, read by torch's own `torch.distributed.checkpoint` in this process alone."""
    weights, moments = hashlib.sha256(), hashlib.sha256()
    stored = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    for name in sorted(stored):
        entry = stored[name]
        assert isinstance(entry, TensorStorageMetadata)
        tensor = torch.full(entry.size, torch.nan)  # what is not read stays NaN
        dcp.load({name: tensor}, checkpoint_id=checkpoint, no_dist=True)
        sums = weights if name.startswith("model.") else moments
        sums.update(f"{name} {tuple(tensor.shape)}\n".encode())
        sums.update(tensor.numpy().tobytes())
    return Digest(weights.hexdigest(), moments.hexdigest())
