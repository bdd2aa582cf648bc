"""Rules of the data section: each broken once."""

import pytest

from bigtrain.config import Config, parse_config, validate
from bigtrain.errors import ConfigError

SOURCES = {"code": {"path": "a", "weight": 1.0}, "wiki": {"path": "b", "weight": 2.0}}

BROKEN = [
    ({}, "data.train is missing: give the folder of a dataset, or several as data.sources"),
    ({"train": "x", "sources": SOURCES}, "data.train and data.sources are both given"),
    ({"train": "x", "stages": [{"share": 0.5, "weights": {}}]}, "data.stages changes the shares of data.sources"),
    (
        {"sources": {"code": {"path": "a", "weight": 1.0, "epochs": 2.0}}},
        "data.sources.code has weight and epochs: one of them gives its share",
    ),
    (
        {"sources": {"code": {"path": "a", "weight": 1.0}, "wiki": {"path": "b"}}},
        "data.sources.wiki has no weight and data.sources.code has one",
    ),
    ({"sources": SOURCES, "stages": [{"weights": {"code": 1.0}}]}, "data.stages.0 needs one of step and share"),
    (
        {"sources": SOURCES, "stages": [{"step": 5, "share": 0.5, "weights": {"code": 1.0}}]},
        "data.stages.0 needs one of step and share",
    ),
    (
        {"sources": SOURCES, "stages": [{"step": 5, "weights": {"books": 1.0}}]},
        "data.stages.0.weights names books, which data.sources does not have; it has code and wiki",
    ),
    ({"sources": SOURCES, "stages": [{"step": 5, "weights": {"code": 0.0}}]}, "has no weight above 0"),
    (
        {
            "sources": SOURCES,
            "stages": [{"step": 7, "weights": {"code": 1.0}}, {"share": 0.5, "weights": {"wiki": 1.0}}],
        },
        "data.stages begin at the steps 7 and 5: put them in order",
    ),
    ({"sources": SOURCES, "stages": [{"share": 0.01, "weights": {"code": 1.0}}]}, "data.stages.0 begins with the run"),
    ({"train": "x", "packing": "padded", "fim_rate": 0.5}, "data.fim_rate cannot be had with data.packing=padded"),
]


def config(data: dict[str, object]) -> Config:
    model = {"vocab_size": 64, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    training = {"output_dir": "x", "steps": 10, "global_batch_size": 1, "micro_batch_size": 1, "sequence_length": 8}
    return parse_config({"model": {**model, "max_position_embeddings": 8}, "data": data, "training": training})


@pytest.mark.parametrize(("data", "message"), BROKEN, ids=[message[:40] for _, message in BROKEN])
def test_a_broken_rule_is_told(data: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as told:
        validate(config(data), world_size=1)
    assert message in str(told.value)


def test_a_sound_mixture_is_accepted() -> None:
    stages = [{"step": 5, "weights": {"code": 1.0}}, {"share": 0.9, "weights": {"code": 1.0, "wiki": 0.0}}]
    validate(config({"sources": SOURCES, "stages": stages}), world_size=1)
