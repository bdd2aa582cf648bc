"""How fast, how well used, how much memory."""

import re
from pathlib import Path

import torch

from bigtrain.config import Config
from bigtrain.data.pairs import pair_lengths
from bigtrain.models.size import flops_per_token, predicted_share, t5_flops
from bigtrain.parallel import compat

PEAK_BF16_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "H800": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 150e12,
    "L40S": 362e12,
    "MI300X": 1307e12,
    "MI250X": 191.5e12,
}
"""Dense bf16 tensor-core peaks from the makers' data sheets, without sparsity (SXM where there are several)."""


def peak_flops(precision: str) -> float | None:
    """Peak FLOP/s of this process's accelerator, or None where there is none or it is not in the table."""
    if not compat.use_gpu() or precision != "bf16":
        return None
    return _peak_of(torch.cuda.get_device_name())


def _peak_of(name: str) -> float | None:
    """Looked up by whole words: an "RTX A4000" is no "A40"."""
    return next((PEAK_BF16_FLOPS[word] for word in re.split(r"[^A-Za-z0-9]", name) if word in PEAK_BF16_FLOPS), None)


def model_flops_utilization(config: Config, tokens_per_second: float, world_size: int) -> float | None:
    """Model FLOPs done over what the accelerators could do (PaLM, arXiv:2204.02311, appendix B), or None.

    Model FLOPs are those of one forward and one backward pass as `flops_per_token` counts them;
    recomputed activations do not count.
    """
    peak = peak_flops(config.training.precision)
    if peak is None:
        return None
    return tokens_per_second * _flops_per_token(config) / (world_size * peak)


def _flops_per_token(config: Config) -> float:
    """Of a T5, per token of its encoder."""
    if config.model.architecture != "t5":
        return flops_per_token(config.model, config.training.sequence_length, predicted_share(config))
    lengths = pair_lengths(config)
    encoder, decoder, output = t5_flops(config.model, lengths.inputs, lengths.targets)
    layers = config.model.num_hidden_layers * encoder + config.model.decoder_layers * decoder
    return (layers + output) / lengths.inputs


def peak_memory_bytes() -> int:
    """The most memory this process has used: on its GPU, or of the machine where there is none."""
    if compat.use_gpu():
        return torch.cuda.max_memory_allocated()
    # Not `ru_maxrss`: a process inherits that of its parent.
    most = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert most, "Linux tells it"
    return int(most[1]) * 1024
