"""The configurations that lie in `configs/`: each loads, and its layout works on the GPUs that it is meant for."""

import re
from pathlib import Path

import pytest

from bigtrain.config import load_config, micro_batches, validate

CONFIGS = Path(__file__).parent.parent.parent / "configs"
RUNS = {  # processes that each is meant for, and others that its comments promise
    "bert-base": (8,),
    "demo": (4, 2),
    "gpt2-small": (8,),
    "gpt3-175b": (1024,),
    "llama3-70b": (256, 512, 8192),
    "llama3-8b": (64, 128, 1024),
}
MODELS = sorted(path.stem for path in (CONFIGS / "models").glob("*.yaml"))
RUN_WORDS = ["data.train=x", "training={output_dir: x, steps: 1, global_batch_size: 1, sequence_length: 64}"]


def test_every_run_is_tested() -> None:
    assert sorted(path.stem for path in (CONFIGS / "runs").glob("*.yaml")) == sorted(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_run(name: str) -> None:
    path = CONFIGS / "runs" / f"{name}.yaml"
    config = load_config(path)
    assert re.search(rf"\b{RUNS[name][0]:,} (?:GPUs|processes)", path.read_text())
    for world_size in RUNS[name]:
        validate(config, world_size)
        # a pipeline is kept busy: more micro-batches than stages
        assert micro_batches(config, world_size) >= config.parallel.pipeline
    for place in (config.data.train, config.data.validation, config.training.output_dir):
        assert place is not None
        assert not Path(place).is_absolute()


@pytest.mark.parametrize("name", ["bert-base", "gpt2-small", "gpt3-175b", "llama3-70b", "llama3-8b"])
def test_a_run_reads_the_tokens_that_its_comment_says(name: str) -> None:
    path = CONFIGS / "runs" / f"{name}.yaml"
    training = load_config(path).training
    tokens = training.steps * training.global_batch_size * training.sequence_length
    said = re.search(r"steps: .*= ([\d.]+) (billion|trillion)", path.read_text())
    assert said is not None
    assert tokens == pytest.approx(float(said[1]) * {"billion": 1e9, "trillion": 1e12}[said[2]], rel=0.01)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_file_holds_a_model_alone_that_works(name: str) -> None:
    config = load_config(CONFIGS / "models" / f"{name}.yaml", RUN_WORDS)
    validate(config, 1)
    assert config.model_fields_set == {"model", "data", "training"}


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-gpt2", "tiny-llama", "tiny-mixtral", "tiny-t5", "demo"])
def test_test_models_split_every_way(name: str) -> None:
    words = [*RUN_WORDS, "parallel={tensor: 2, pipeline: 2, sequence: true}"]
    validate(load_config(CONFIGS / "models" / f"{name}.yaml", words), 4)


@pytest.mark.parametrize("path", sorted((CONFIGS / "finetune").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_runs_of_fine_tuning(path: Path) -> None:
    """Their model comes from the checkpoint that they are given."""
    shape = "model={vocab_size: 512, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2}"
    config = load_config(path, [shape])
    for world_size in (1, 4):
        validate(config, world_size)
