"""Figures of speed and use, by hand."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from bigtrain.config import Config
from bigtrain.training import throughput


def test_utilization_is_model_flops_over_peak(tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    """PaLM's 6 N + 12 L H Q T, written out for the tiny model; only the accelerator is invented."""
    monkeypatch.setattr(throughput, "peak_flops", lambda precision: 1e12 if precision == "bf16" else None)
    config = tiny("training.precision=bf16")
    matrices = 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48) + 512 * 32
    flops = 6 * matrices + 12 * 2 * 4 * 8 * 16
    found = throughput.model_flops_utilization(config, tokens_per_second=1e6, world_size=8)
    assert found == pytest.approx(1e6 * flops / (8 * 1e12))
    assert throughput.model_flops_utilization(tiny(), 1e6, 8) is None


def test_there_is_none_without_an_accelerator(tiny: Callable[..., Config]) -> None:
    assert throughput.peak_flops("bf16") is None
    assert throughput.model_flops_utilization(tiny("training.precision=bf16"), 1e6, 1) is None


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A40", 150),
        ("AMD Instinct MI300X", 1307),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA GB200", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_peaks_are_found_by_the_devices_name(name: str, teraflops: float | None) -> None:
    found = throughput._peak_of(name)
    assert found == (None if teraflops is None else teraflops * 1e12)


def test_memory_is_the_most_this_process_had() -> None:
    """In bytes. The kernel tells it in another place as well, which does not count what a parent had before `exec`."""
    high_water = int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024
    assert 0.9 * high_water < throughput.peak_memory_bytes() < 100 * high_water
