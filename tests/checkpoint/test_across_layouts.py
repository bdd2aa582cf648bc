"""Two processes in every layout begin with the weights of one, and give back bit for bit what one has saved."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from bigtrain.checkpoint import store
from bigtrain.checkpoint.catalog import TrainingState
from bigtrain.config import Config, to_yaml
from bigtrain.data.batch import Batch
from bigtrain.data.encoder import MaskedBatch
from bigtrain.data.loader import CausalBatch
from bigtrain.data.pair_batches import PairBatch
from bigtrain.launch.environment import World
from bigtrain.launch.local import run_workers
from bigtrain.parallel.engine import Engine
from bigtrain.parallel.topology import Layout

WORKER = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_across_layouts import STATE, a_batch, targets
from bigtrain.checkpoint import catalog, store
from bigtrain.config import load_config
from bigtrain.parallel import topology
from bigtrain.parallel.engine import Engine

folder, losses = Path(sys.argv[1]), {}
for case in json.loads((folder / "cases.json").read_text()):
    name, config = case["name"], load_config(folder / "run.yaml", case["words"])
    engine = Engine(config, topology.start_processes(config))
    store.save(folder / name / "initial", engine, STATE, {}, keep_last=0)
    losses[name], batch = [], a_batch(config)
    for _ in range(2):  # into a new engine, and into one that has gone on
        store.load(catalog.read(Path(case["trained"])), engine)
        losses[name].append(float(engine.evaluate(batch).sum()) / engine.layout.data)
        if len(losses[name]) == 1:
            engine.train_step(batch, targets(batch, engine.layout.data), 0.1, 0)
    store.save(folder / name / "again", engine, STATE, {}, keep_last=0)
    engine.close()
if topology.is_first_rank():
    (folder / "losses.json").write_text(json.dumps(losses))
topology.stop_processes()
"""
STATE = TrainingState(0, 0, 0)
MODELS = {
    "tied": ["model.tie_word_embeddings=true", "model.linear_bias=true", "model.normalization=layernorm"],
    "untied": ["model.position_embedding=learned", "model.gated_mlp=false"],
    "experts": ["model.num_experts=4", "model.moe_intermediate_size=24", "model.num_hidden_layers=5"],
    "bert": [
        "model.architecture=bert",
        "model.position_embedding=learned",
        "model.normalization=layernorm",
        "model.linear_bias=true",
        "model.gated_mlp=false",
        "model.tie_word_embeddings=true",
        "model.add_pooling_layer=true",
        "data.sentence_objective=next",
    ],
    "t5": [
        "model.architecture=t5",
        "model.num_decoder_layers=3",
        "model.num_key_value_heads=null",
        "model.position_embedding=relative",
        "model.tie_word_embeddings=true",
    ],
}
LAYOUTS = {
    "tensor": ["parallel.tensor=2"],
    "sequence": ["parallel.tensor=2", "parallel.sequence=true", "parallel.zero_stage=3"],
    "pipeline": ["parallel.pipeline=2"],
    "interleaved": ["parallel.pipeline=2", "parallel.virtual_pipeline=2", "parallel.zero_stage=2"],
    "uneven": ["parallel.pipeline=2", "parallel.layers_per_stage=[3,1]"],
    "pipeline-zero3": ["parallel.pipeline=2", "parallel.zero_stage=3"],
    **{f"data-zero{stage}": [f"parallel.zero_stage={stage}"] for stage in range(4)},
    "context": ["parallel.context=2"],
    "context-zero0": ["parallel.context=2", "parallel.zero_stage=0"],
    "context-zero3": ["parallel.context=2", "parallel.zero_stage=3"],
    "data-offload": ["parallel.zero_stage=2", "parallel.offload=optimizer"],
}
OF_EXPERTS = {
    "expert": ["parallel.expert=2"],
    "expert-zero2": ["parallel.expert=2", "parallel.zero_stage=2"],
    "expert-tensor": ["parallel.expert=2", "parallel.tensor=2", "parallel.sequence=true"],
    "copied-over-tensor": ["parallel.tensor=2", "parallel.sequence=true"],
    "copied-over-data": ["parallel.zero_stage=0"],
    "uneven-interleaved": [
        "parallel.pipeline=2",
        "parallel.virtual_pipeline=2",
        "parallel.layers_per_stage=[1,2,1,1]",
    ],
    "balanced-zero3": ["parallel.pipeline=2", "parallel.zero_stage=3"],
}
OF_T5 = {
    "tensor-zero3": ["parallel.tensor=2", "parallel.zero_stage=3"],
    "sequence-zero2": ["parallel.tensor=2", "parallel.sequence=true", "parallel.zero_stage=2"],
    "interleaved": LAYOUTS["interleaved"],
    "decoder-on-both": ["parallel.pipeline=2", "parallel.layers_per_stage=[6,1]", "parallel.zero_stage=3"],
    "encoder-on-both": ["parallel.pipeline=2", "parallel.layers_per_stage=[1,6]"],
    "data-zero0": ["parallel.zero_stage=0"],
}
CASES = [
    *(("tied", layout) for layout in LAYOUTS),
    ("untied", "tensor"),
    ("untied", "pipeline"),
    ("untied", "context"),
    *(("experts", layout) for layout in OF_EXPERTS),
    *(("t5", layout) for layout in OF_T5),
    *(("bert", layout) for layout in ("tensor", "sequence", "interleaved", "pipeline-zero3", "data-zero2")),
]


def a_batch(config: Config) -> Sequence[Batch]:
    """Two micro-batches: an interleaved pipeline takes no fewer."""
    tokens, positions = torch.arange(68).view(4, 17) * 7 % 512, torch.arange(16).expand(2, -1)
    if config.model.architecture == "gpt":
        return [CausalBatch(part[:, :-1], part[:, 1:], torch.ones(2, 16), positions) for part in tokens.split(2)]
    if config.model.architecture == "t5":
        return [
            PairBatch(part[:, :10], part[:, 11:], torch.ones(2, 6), part[:, 10:-1], torch.arange(10).expand(2, -1) < 7)
            for part in tokens.split(2)
        ]
    types, there = (positions > 8).long(), positions < 14
    labels = torch.cat([tokens[:, :16], torch.tensor([[0], [1], [1], [0]])], dim=1)
    return [
        MaskedBatch(part[:, :16] * (positions % 5 > 0), part, torch.ones(2, 17), types, there)
        for part in labels.split(2)
    ]


def targets(batches: Sequence[Batch], data_parallel: int) -> list[float]:
    """Of each kind; how many there are is of no matter here."""
    return [64.0 * data_parallel] * len(batches[0].kinds)


def plainly(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the only checkpoint in a folder, by torch's own reader and no process group."""
    path = next(folder.glob("step-*"))
    stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    tensors = {name: torch.full(entry.size, torch.nan) for name, entry in stored.items()}
    dcp.load(tensors, checkpoint_id=path, no_dist=True)
    return tensors


@pytest.fixture(scope="module")
def folder(tiny: Callable[..., Config], world: Layout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process had at first and after a step, and what two made of it in every case."""
    folder = tmp_path_factory.mktemp("layouts")
    (folder / "run.yaml").write_text(to_yaml(tiny("model.num_hidden_layers=4")))
    trained, losses = {}, {}
    for name, words in MODELS.items():
        config = tiny("model.num_hidden_layers=4", *words)
        engine, batch = Engine(config, replace(world, zero_stage=1)), a_batch(config)
        store.save(folder / name / "initial", engine, STATE, {}, keep_last=0)
        engine.train_step(batch, targets(batch, 1), 1e-2, 0)
        trained[name] = store.save(folder / name / "trained", engine, STATE, {}, keep_last=0)
        losses[name] = float(engine.evaluate(batch).sum())
        engine.close()
    (folder / "losses-of-one.json").write_text(json.dumps(losses))
    cases = [
        {
            "name": f"{model}-{layout}",
            "words": MODELS[model] + (LAYOUTS | OF_EXPERTS | OF_T5)[layout],
            "trained": str(trained[model]),
        }
        for model, layout in CASES
    ]
    (folder / "cases.json").write_text(json.dumps(cases))
    (folder / "worker.py").write_text(WORKER)
    command = [sys.executable, str(folder / "worker.py"), str(folder), str(Path(__file__).parent)]
    assert run_workers(command, World(2), log_dir=folder / "logs") == 0
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize(("model", "layout"), CASES)
@pytest.mark.parametrize(("here", "there"), [("initial", "initial"), ("trained", "again")])
def test_two_processes_hold_what_one_does(model: str, layout: str, here: str, there: str, folder: Path) -> None:
    one, two = plainly(folder / model / here), plainly(folder / f"{model}-{layout}" / there)
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


@pytest.mark.distributed
@pytest.mark.parametrize(("model", "layout"), CASES)
def test_every_number_is_written_once(model: str, layout: str, folder: Path) -> None:
    path = next((folder / f"{model}-{layout}" / "again").glob("step-*"))
    for name, tensor in dcp.FileSystemReader(path).read_metadata().state_dict_metadata.items():
        assert sum(chunk.sizes.numel() for chunk in tensor.chunks) == tensor.size.numel(), name


@pytest.mark.distributed
@pytest.mark.parametrize(("model", "layout"), CASES)
def test_the_forward_pass_uses_what_was_loaded(model: str, layout: str, folder: Path) -> None:
    """Also where weights of another step were in use before."""
    expected = json.loads((folder / "losses-of-one.json").read_text())[model]
    new, gone_on = json.loads((folder / "losses.json").read_text())[f"{model}-{layout}"]
    assert new == pytest.approx(expected, rel=1e-6)
    assert gone_on == new


@pytest.mark.distributed
def test_each_process_writes_its_part(folder: Path) -> None:
    """Of what both hold, too: with ZeRO-0 neither writes everything."""
    for layout in LAYOUTS:
        if not layout.startswith(("data", "context")):
            continue
        files = (folder / f"tied-{layout}" / "again" / "step-00000000").glob("*.distcp")
        sizes = sorted(path.stat().st_size for path in files)
        assert len(sizes) == 2
        assert sizes[0] > 0.7 * sizes[1], layout
