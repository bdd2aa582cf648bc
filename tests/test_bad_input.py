"""Each mistake ends before training, with exit code 2 and one message that names what is wrong and what is right."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigtrain.launch.environment import World
from bigtrain.launch.local import run_workers

ROOT = Path(__file__).parents[1]


@dataclass
class Scene:
    """A run that would work, and the folders to spoil."""

    folder: Path
    dataset: Path
    config: dict[str, Any]

    def pretrain(self, *words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        path = self.folder / "run.yaml"
        path.write_text(yaml.safe_dump(self.config))
        command = [sys.executable, "-m", "bigtrain", "pretrain", str(path), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


@pytest.fixture
def scene(dataset: Path, tmp_path: Path) -> Scene:
    copy = tmp_path / "data"
    shutil.copytree(dataset, copy)
    config = {
        "extends": str(ROOT / "configs/models/tiny-llama.yaml"),
        "model": {"vocab_size": 512},
        "data": {"train": str(copy / "train")},
        "training": {
            "output_dir": str(tmp_path / "run"),
            "steps": 1,
            "global_batch_size": 4,
            "sequence_length": 32,
            "precision": "fp32",
        },
        "logging": {"wandb": "disabled"},
    }
    return Scene(tmp_path, copy, config)


def assert_refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("error:") == 1
    for word in words:
        assert word in result.stderr


KNOWN_FROM_THE_CONFIGURATION = [
    (["parallel.tensr=2"], ["parallel.tensr", "parallel.tensor"]),
    (["trainning.steps=2"], ["trainning", "training"]),
    (["training.steps=many"], ["training.steps", "whole number"]),
    (["--nproc", "3", "parallel.tensor=2"], ["world size 3", "tensor(2)"]),
    (["--nproc", "3", "parallel.tensor=3"], ["model.num_attention_heads (8)", "parallel.tensor (3)"]),
    (["--nproc", "8", "parallel.pipeline=8"], ["model.num_hidden_layers (4)", "parallel.pipeline (8)"]),
    (["--nproc", "3"], ["training.global_batch_size (4)", "data parallel (3)"]),
    (["training.micro_batch_size=3"], ["training.micro_batch_size (3)", "training.global_batch_size (4)"]),
    (["parallel.virtual_pipeline=2"], ["parallel.virtual_pipeline (2)", "parallel.pipeline"]),
    (["parallel.offload=optimizer", "parallel.zero_stage=0"], ["parallel.offload", "parallel.zero_stage"]),
    (["training.sequence_length=100000"], ["training.sequence_length (100000)", "model.max_position_embeddings"]),
]


@pytest.mark.parametrize(("words", "told"), KNOWN_FROM_THE_CONFIGURATION, ids=lambda value: " ".join(value))
def test_refused_from_the_configuration_alone(scene: Scene, words: list[str], told: list[str]) -> None:
    assert_refused(scene.pretrain(*words), *told)
    assert not (scene.folder / "run").exists(), "nothing was started"


def test_refused_in_under_a_second_without_torch(scene: Scene) -> None:
    """A second of a processor, which others on the machine do not make longer; torch alone takes more."""
    (scene.folder / "sitecustomize.py").write_text(
        "import atexit, sys\n"
        "heavy = {'torch', 'megatron', 'deepspeed', 'transformers', 'pyarrow', 'wandb'}\n"
        "atexit.register(lambda: print('loaded', sorted(heavy & set(sys.modules)), file=sys.stderr))\n"
    )
    seconds = []
    path = scene.folder / "run.yaml"
    path.write_text(yaml.safe_dump(scene.config))
    command = [sys.executable, "-m", "bigtrain", "pretrain", str(path), "parallel.tensor=3", "--nproc", "3"]
    environment = {**os.environ, "PYTHONPATH": str(scene.folder)}
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert_refused(result, "parallel.tensor (3)")
        assert "loaded []" in result.stderr
    assert min(seconds) < 1.0


def spoil_shard(scene: Scene) -> list[Any]:
    shard = next((scene.dataset / "train").glob("*.arrow"))
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    return []


def remove_shard(scene: Scene) -> list[Any]:
    next((scene.dataset / "train").glob("*.arrow")).unlink()
    return []


def no_dataset(_: Scene) -> list[Any]:
    return ["data.train=/nowhere/data"]


def other_tokenizer(scene: Scene) -> list[Any]:
    from bigtrain.prepare.train_tokenizer import train_sentencepiece

    path = train_sentencepiece(
        ["some other text, long enough to learn 300 pieces from " * 50], scene.folder / "o.model", 280
    )
    return [f"tokenizer.path={path}"]


def vocabulary_too_large(_: Scene) -> list[Any]:
    return ["model.vocab_size=256"]


def unwritable_output(scene: Scene) -> list[Any]:
    (scene.folder / "file").write_text("")
    return [f"training.output_dir={scene.folder / 'file' / 'run'}"]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoil_shard, ["shard-00000.arrow", "bytes"]),
        (remove_shard, ["shard-00000.arrow"]),
        (no_dataset, ["data.train", "/nowhere/data"]),
        (other_tokenizer, ["o.model", "tokenizer"]),
        (vocabulary_too_large, ["model.vocab_size (256)", "512"]),
        (unwritable_output, ["file/run"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_refused_before_training(scene: Scene, spoil: Callable[[Scene], list[Any]], told: list[str]) -> None:
    words = spoil(scene)
    assert_refused(scene.pretrain(*words, "--nproc", 4), *told)
    assert not (scene.folder / "run" / "metrics.jsonl").exists(), "no step was made"


@pytest.mark.distributed
def test_refused_by_all_ranks_under_another_launcher(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    """What torchrun or srun starts goes straight to the workers: one looks, all end with 2, one speaks."""
    words = spoil_shard(scene)
    path = scene.folder / "run.yaml"
    path.write_text(yaml.safe_dump(scene.config))
    exit_code = run_workers([sys.executable, "-m", "bigtrain", "pretrain", str(path), *words], World(2))
    told = capfd.readouterr().err
    assert exit_code == 2
    assert told.count("error:") == 1
    assert "shard-00000.arrow" in told


@pytest.mark.distributed
def test_resuming_what_cannot_be_resumed(scene: Scene) -> None:
    assert scene.pretrain().returncode == 0
    assert_refused(scene.pretrain("model.intermediate_size=64"), "model.intermediate_size was", "64")
    assert_refused(scene.pretrain("training.seed=5"), "training.seed was 1234 and is 5")
    assert_refused(scene.pretrain("checkpoint.resume=false"), "checkpoint.resume")

    checkpoint = scene.folder / "run/checkpoints/step-00000001"
    part = next(checkpoint.glob("*.distcp"))
    whole = part.read_bytes()
    part.write_bytes(whole[:500_000] + bytes([whole[500_000] ^ 1]) + whole[500_001:])
    assert_refused(scene.pretrain("training.steps=2"), f"{part} is damaged between the bytes", "remove its folder")
    with part.open("r+b") as file:
        file.truncate(10)
    assert_refused(scene.pretrain("training.steps=2"), part.name, "10 bytes")

    marker = json.loads((checkpoint / "complete.json").read_text())
    marker["format_version"] = 99
    (checkpoint / "complete.json").write_text(json.dumps(marker))
    assert_refused(scene.pretrain("training.steps=2"), "format version 99")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder with room for one checkpoint and a half, and what `Popen` needs for it.

    A disk of that size for root; for others, or where it may not mount, a limit on the size of files.
    """
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5000k", "none", folder], capture_output=True)
    if mounted.returncode == 0:
        yield folder, {}
        subprocess.run(["umount", folder], check=True)
    else:
        yield folder, {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, -1))}


@pytest.mark.parametrize("in_background", ["true", "false"])
def test_a_full_disk(scene: Scene, small_disk: tuple[Path, dict[str, Any]], in_background: str) -> None:
    """The checkpoint before stays, and nothing that is half-written."""
    folder, limit = small_disk
    words = [f"checkpoint.dir={folder}", f"checkpoint.async_save={in_background}", "checkpoint.interval=1"]
    assert scene.pretrain(*words).returncode == 0
    assert_refused(
        scene.pretrain(*words, "training.steps=9", **limit),
        f"{folder}/.step-00000002.writing/__0_0.distcp cannot be written: ",
        "bytes are free there",
        "Earlier checkpoints are as they were",
    )
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-00000001"]


def test_a_file_that_is_not_a_configuration(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bigtrain", "pretrain", str(tmp_path / "none.yaml")]
    assert_refused(subprocess.run(command, capture_output=True, text=True, check=False), "none.yaml")
