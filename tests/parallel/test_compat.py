"""Life without a GPU, a compiler or noise; and what of the engines it stands on, for an upgrade to tell what broke."""

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import json, sys
from pathlib import Path
import bigtrain.training.pretrain
from bigtrain.config import load_config
from bigtrain.parallel import compat, topology
from bigtrain.parallel.engine import Engine
import torch
from bigtrain.data.loader import CausalBatch

from bigtrain.checkpoint import catalog, store

compat.install()

import deepspeed, megatron.core.pipeline_parallel.schedules as schedules
import megatron.core.models.common.embeddings.rope_utils as rope_utils
from megatron.core.tensor_parallel import random
tokens = torch.arange(68).view(4, 17)
batch = CausalBatch(tokens[:, :-1], tokens[:, 1:], torch.ones(4, 16), torch.arange(16).expand(4, -1))
for stage in range(4):
    config = load_config(sys.argv[1], [f"parallel.zero_stage={stage}"])
    engine = Engine(config, topology.start_processes(config))
    result = engine.train_step([batch], 64, 1e-3, 0)
    engine.evaluate([batch])
    path = store.save(Path(sys.argv[3]), engine, catalog.TrainingState(stage, 0, 0), {}, keep_last=1)
    store.load(catalog.read(path), engine)
    engine.close()
topology.stop_processes()
state = random._get_cuda_rng_state()
drawn = torch.randn(3)
random._set_cuda_rng_state(state)
found = {
    "accelerator": deepspeed.accelerator.get_accelerator().device_name(),
    "schedule": str(schedules.torch.zeros([], dtype=torch.int, device="cuda").device),
    "schedule_elsewhere": str(schedules.torch.zeros(2, device="meta").device),
    "schedule_attribute": schedules.torch.no_grad is torch.no_grad,
    "rotary_pinned": rope_utils.torch.tensor([1, 2], device="cpu", pin_memory=True).tolist(),
    "device": str(compat.device()),
    "cuda_is_identity": tokens.cuda() is tokens,
    "random_state_comes_back": torch.equal(drawn, torch.randn(3)),
    "loss": float(result.loss),
}
Path(sys.argv[2]).write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """First steps of a user with an empty home, no compiler and no settings: (home, process, what it saw)."""
    home = tmp_path_factory.mktemp("home")
    (home / "bin").mkdir()
    config = Path(__file__).parents[2] / "configs/models/tiny-llama.yaml"
    (home / "run.yaml").write_text(
        f"extends: {config}\n"
        "data: {train: x}\n"
        "training: {output_dir: x, steps: 1, global_batch_size: 4, micro_batch_size: 4, sequence_length: 16}\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, home / "run.yaml", home / "found.json", home / "checkpoints"],
        env={"HOME": str(home), "PATH": str(home / "bin")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return home, process, json.loads((home / "found.json").read_text())


def test_nothing_is_printed(bare: Any) -> None:
    _, process, _ = bare
    assert process.stdout == ""
    assert process.stderr == ""


def test_nothing_is_compiled(bare: Any) -> None:
    home, _, _ = bare
    assert [str(p) for p in home.rglob("*") if "torch_extensions" in p.parts or p.suffix in (".so", ".ninja")] == []


def test_everything_is_on_the_cpu(bare: Any) -> None:
    _, _, found = bare
    assert found["accelerator"] == found["device"] == found["schedule"] == "cpu"
    assert found["schedule_elsewhere"] == "meta", "only the literal cuda is another device"
    assert found["schedule_attribute"]
    assert found["rotary_pinned"] == [1, 2], "memory is pinned for a GPU alone"
    assert found["cuda_is_identity"]
    assert found["random_state_comes_back"]
    assert 5 < found["loss"] < 6, "about log(256)"


def parsed(module: str) -> ast.Module:
    """An engine's own file, whatever was replaced in memory."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"{module} is gone"
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def called_by_name(tree: ast.Module) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("megatron.core.pipeline_parallel.schedules", "torch"),
        ("megatron.core.models.common.embeddings.rope_utils", "torch"),
        ("megatron.core.tensor_parallel.random", "_get_cuda_rng_state"),
        ("megatron.core.tensor_parallel.random", "_set_cuda_rng_state"),
        ("megatron.core.transformer.moe.moe_utils", "te_general_gemm"),
        ("megatron.core.transformer.moe.token_dispatcher", "self._maybe_dtoh_and_synchronize"),
        ("deepspeed.runtime.zero.partitioned_param_coordinator", "assert_ints_same_as_other_ranks"),
    ],
)
def test_what_is_replaced_is_used_by_its_name_in_the_module(module: str, name: str) -> None:
    assert any(call == name or call.startswith(f"{name}.") for call in called_by_name(parsed(module)))


def test_the_schedules_make_tensors_on_the_literal_cuda_by_zeros_alone() -> None:
    """That call is what `_TorchWithoutCuda` catches."""
    makers = {
        ast.unparse(node.func)
        for node in ast.walk(parsed("megatron.core.pipeline_parallel.schedules"))
        if isinstance(node, ast.Call)
        and any(word.arg == "device" and ast.unparse(word.value) == "'cuda'" for word in node.keywords)
    }
    assert makers == {"torch.zeros"}


def test_deepspeed_asks_whether_its_shared_memory_op_is_wanted() -> None:
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder  # type: ignore[import-untyped]

    assert ShareMemCommBuilder.NAME == "deepspeed_shm_comm"
    source = ast.unparse(parsed("deepspeed.comm.torch"))
    assert "__compatible_ops__.get(builder.NAME, False)" in source
