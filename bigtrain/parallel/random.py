"""Random numbers of a step, as a pure function of (seed, step, place in the layout)."""

import hashlib

from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from bigtrain.parallel.topology import Layout


def seed_step(seed: int, step: int, layout: Layout) -> None:
    """Set the random streams that dropout draws from, so that a resumed run needs no saved states.

    Megatron-core derives from it one stream that the tensor group shares and one for each of its ranks.
    """
    text = f"{seed}/{step}/{layout.replica_rank}/{layout.pipeline_rank}"
    value = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
    model_parallel_cuda_manual_seed(value)
