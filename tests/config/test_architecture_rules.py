"""What each architecture knows: every rule that is broken is told with its remedy."""

from pathlib import Path

import pytest

from bigtrain.config import load_config, validate
from bigtrain.errors import ConfigError

MODELS = Path(__file__).parent.parent.parent / "configs" / "models"
RUN_WORDS = ["data.train=x", "training={output_dir: x, steps: 1, global_batch_size: 4, sequence_length: 64}"]
SENTENCES = ["data.sentence_objective=order", "model.add_pooling_layer=true"]


@pytest.mark.parametrize(
    ("words", "message", "remedy"),
    [
        (["model.position_embedding=relative"], "which is T5's", ["model.position_embedding=learned"]),
        (
            ["model.position_embedding=rope", "model.position_offset=2"],
            r"model\.position_offset \(2\) is a row of learned positions",
            ["model.position_offset=0"],
        ),
        (["parallel.context=2"], "and BERT has none", ["parallel.context=1"]),
        (["data.packing=documents"], "which BERT's attention does not", ["data.packing=padded"]),
        (["data.packing=best_fit"], "which BERT's attention does not", ["data.packing=contiguous"]),
        (
            ["model.sliding_window=8"],
            r"model\.sliding_window \(8\) is for",
            ["model.sliding_window=null"],
        ),
        (["data.fim_rate=0.5"], r"data\.fim_rate \(0\.5\) is for model\.architecture=gpt", ["data.fim_rate=0.0"]),
        (
            ["data.mask_document_boundaries=true"],
            r"data\.mask_document_boundaries \(True\) is for model\.architecture=gpt",
            ["data.mask_document_boundaries=false"],
        ),
        (["data.sentence_objective=next"], "learned through that layer", ["model.add_pooling_layer=true"]),
        (["model.add_pooling_layer=true"], "leave the latter out", ["data.sentence_objective=next"]),
        ([*SENTENCES, "model.type_vocab_size=1"], "tell the two segments apart", ["model.type_vocab_size=2"]),
        ([*SENTENCES, "training.sequence_length=4"], "no room for two segments", ["training.sequence_length=5"]),
        (["training.sequence_length=2"], "no room for a token", ["training.sequence_length=3"]),
        (
            ["model.num_experts=4"],
            r"model\.num_experts \(4\) is for model\.architecture=gpt",
            ["model.num_experts=null"],
        ),
    ],
)
def test_bert_refuses(words: list[str], message: str, remedy: list[str]) -> None:
    path = MODELS / "tiny-bert.yaml"
    with pytest.raises(ConfigError, match=message):
        validate(load_config(path, [*RUN_WORDS, *words]), 4)
    validate(load_config(path, [*RUN_WORDS, *words, *remedy]), 4)


@pytest.mark.parametrize(
    "word",
    [
        "data.sentence_objective=next",
        "data.mlm_probability=0.3",
        "data.whole_word_masking=true",
        "model.type_vocab_size=1",
        "model.add_pooling_layer=true",
    ],
)
def test_gpt_knows_nothing_of_berts(word: str) -> None:
    key = word.split("=")[0]
    with pytest.raises(ConfigError, match=rf"^{key}[ =].* is for model\.architecture=bert"):
        validate(load_config(MODELS / "tiny-llama.yaml", [*RUN_WORDS, word]), 4)
