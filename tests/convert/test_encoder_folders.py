"""BERT, RoFormer, RoBERTa and T5 come in from `transformers` and go out as they were, with what lies beside them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import torch
import transformers as hf
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from bigtrain.checkpoint.find import find_checkpoint
from bigtrain.config import parse_config
from bigtrain.convert.from_hf import convert_from_hf
from bigtrain.convert.source import model_config
from bigtrain.convert.to_hf import convert_to_hf
from bigtrain.convert.weights import Weights
from bigtrain.data.framing import framing_of
from bigtrain.data.tokenizer import load_tokenizer
from bigtrain.errors import ConversionError
from bigtrain.finetune.inputs import open_task
from bigtrain.finetune.load import load_task_config
from bigtrain.prepare.train_tokenizer import train_sentencepiece, train_wordpiece
from bigtrain.training.resume import checkpoint_to_begin_with

WORDLESS = {"_name_or_path", "architectures", "dtype", "use_cache", "transformers_version", "eos_token_id"}
"""Keys of a configuration that say nothing of the model."""
BERT = {
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
ROBERTA = {**BERT, "max_position_embeddings": 66, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
T5 = {
    "vocab_size": 400,
    "d_model": 32,
    "d_kv": 12,
    "d_ff": 48,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
}
FLAN = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 4}
MODELS: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "bert": (hf.BertForMaskedLM, hf.BertConfig(**BERT)),
    "bert with sentences": (hf.BertForPreTraining, hf.BertConfig(**BERT)),
    "roformer": (hf.RoFormerForMaskedLM, hf.RoFormerConfig(**BERT)),
    "roberta": (hf.RobertaForMaskedLM, hf.RobertaConfig(**ROBERTA)),
    "xlm-roberta": (hf.XLMRobertaForMaskedLM, hf.XLMRobertaConfig(**ROBERTA)),
    "t5": (hf.T5ForConditionalGeneration, hf.T5Config(**T5)),
    "flan-t5": (hf.T5ForConditionalGeneration, hf.T5Config(**FLAN)),
    "mt5": (hf.MT5ForConditionalGeneration, hf.MT5Config(**FLAN)),
}


def random_model(kind: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """The same at every call; nothing is of a value that would hide that it is not used."""
    torch.manual_seed(1)
    model = kind(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "relative" in name:
                parameter.copy_(torch.randn_like(parameter))
            elif name == "lm_head.weight" and not config.tie_word_embeddings:
                parameter.mul_(0.1)  # of 1, whose logits are above 20
    return model.eval()


def save_tokenizer(name: str, sources: list[str], there: Path) -> None:
    """As those of the family are published, with at most 400 tokens."""
    if name.startswith("bert") or name == "roformer":
        train_wordpiece(sources, there, 400)
        return
    if "roberta" in name:
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        trained = tokenizers.ByteLevelBPETokenizer()
        trained.train_from_iterator(sources, vocab_size=400, special_tokens=special)
        there.mkdir(exist_ok=True)
        trained.save_model(str(there))
        hf.RobertaTokenizerFast(str(there / "vocab.json"), str(there / "merges.txt")).save_pretrained(there)
        return
    learned = tokenizers.Tokenizer(models.Unigram())
    learned.normalizer, learned.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=380, special_tokens=special, unk_token="<unk>", show_progress=False)
    learned.train_from_iterator([text[:20_000] for text in sources], trainer)
    learned.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    hf.T5TokenizerFast(tokenizer_object=learned, extra_ids=10).save_pretrained(there)


@pytest.fixture
def saved(sources: list[str], tmp_path: Path) -> Callable[..., Path]:
    """A function that saves a model as `transformers` does, with a tokenizer."""

    def save(name: str, dtype: torch.dtype = torch.float32, kind: type[PreTrainedModel] | None = None) -> Path:
        model = random_model(kind or MODELS[name][0], MODELS[name][1])
        model.to(dtype).save_pretrained(tmp_path / "there")
        save_tokenizer(name, sources, tmp_path / "there")
        return tmp_path / "there"

    return save


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def learned_in(folder: Path) -> dict[str, torch.Tensor]:
    """Without a RoFormer's angles, which are computed."""
    return {name: tensor for name, tensor in weights_in(folder).items() if "embed_positions" not in name}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def config_of(folder: Path) -> dict[str, Any]:
    config = AutoConfig.from_pretrained(folder).to_dict()
    return {key: value for key, value in config.items() if key not in WORDLESS}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_in_and_goes_out_as_it_was(name: str, saved: Callable[..., Path], tmp_path: Path) -> None:
    there, again = saved(name), tmp_path / "again"
    taken = convert_from_hf(there, tmp_path / "here").parity
    made = convert_to_hf(tmp_path / "here", again).parity
    assert taken is not None
    assert made is not None
    assert taken.float32.largest_difference < 1e-5 < 1 < taken.float32.largest_logit
    assert made.float32.largest_difference < 1e-5
    assert taken.embeddings_tied == made.embeddings_tied == MODELS[name][1].tie_word_embeddings
    assert taken.float32.greedy_agreement == made.float32.greedy_agreement == 1
    assert_equal(weights_in(again), learned_in(there))
    config = AutoConfig.from_pretrained(again)
    assert config.architectures == [MODELS[name][0].__name__]
    assert config_of(again) == {**config_of(there), "pad_token_id": config.pad_token_id}
    texts = ("def parse(self): return 42", "import json")
    tokens = [AutoTokenizer.from_pretrained(folder)(*texts) for folder in (there, again)]
    assert dict(tokens[0]) == dict(tokens[1])
    own = load_tokenizer(again)
    framing = framing_of(model_config(find_checkpoint(tmp_path / "here")), own)
    assert framing.around(*own.encode_batch(list(texts)))[0] == tokens[0]["input_ids"]


@pytest.mark.parametrize("name", ["bert with sentences", "roformer", "roberta", "t5", "flan-t5"])
def test_in_bfloat16_too(name: str, saved: Callable[..., Path], tmp_path: Path) -> None:
    there = saved(name, torch.bfloat16)
    convert_from_hf(there, tmp_path / "here", verify=False)
    convert_to_hf(tmp_path / "here", tmp_path / "again", dtype="bfloat16", verify=False)
    assert_equal(weights_in(tmp_path / "again"), learned_in(there))


@pytest.mark.parametrize(
    ("name", "kind", "match"),
    [
        ("bert", hf.BertModel, r"no weight of the checkpoint fills cls\.predictions\.bias"),
        ("roberta", hf.RobertaModel, "nearest is RoBERTa: model.add_pooling_layer is True and must be False"),
    ],
)
def test_a_model_without_a_head_comes_in_to_be_fine_tuned(
    name: str, kind: type[PreTrainedModel], match: str, saved: Callable[..., Path], tmp_path: Path
) -> None:
    """As those of sentence encoders are saved: no `bert.` before the names, and nothing that predicts tokens."""
    there = saved(name, kind=kind)
    taken = convert_from_hf(there, tmp_path / "here")
    assert taken.parity is not None
    assert taken.parity.float32.largest_difference < 1e-4 * taken.parity.float32.largest_logit
    assert taken.parameters == sum(tensor.numel() for tensor in weights_in(there).values())
    with pytest.raises(ConversionError, match=match):
        convert_to_hf(tmp_path / "here", tmp_path / "again")


def test_a_flan_t5_is_fine_tuned_on_what_its_own_tokenizer_gives(saved: Callable[..., Path], tmp_path: Path) -> None:
    there, run = saved("flan-t5"), tmp_path / "run.yaml"
    convert_from_hf(there, tmp_path / "here", verify=False)
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"source": "def parse(self)", "target": "return 42"}) + "\n")
    config = {
        "finetune": {"task": "sequence_to_sequence", "train": str(tmp_path / "pairs.jsonl"), "prompt": "fix: {source}"},
        "checkpoint": {"initialize_from": str(tmp_path / "here")},
        "training": {"output_dir": str(tmp_path), "steps": 1, "global_batch_size": 1, "sequence_length": 64},
    }
    run.write_text(yaml.safe_dump(config))
    opened = open_task(load_task_config(run, []))
    tokenizer = AutoTokenizer.from_pretrained(there)
    (item,) = opened.train.items
    assert item.ids.tolist() == tokenizer("fix: def parse(self)")["input_ids"]
    assert item.labels.tolist() == tokenizer(text_target="return 42")["input_ids"]
    assert opened.train.pad == AutoConfig.from_pretrained(there).decoder_start_token_id


# ------------------------------------------------------------------------------------ as they lie on Hugging Face's hub


def test_bert_as_it_is_published(saved: Callable[..., Path], tmp_path: Path) -> None:
    """Norms with TensorFlow's names, positions as a buffer, the head under both its names, and a class that has no
    pooler beside files that do; the tokenizer is a `vocab.txt`."""
    there = saved("bert with sentences")
    expected = weights_in(there)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    published = {}
    for name, tensor in expected.items():
        for now, before in old.items():
            name = name.replace(now, before)
        published[name] = tensor
    published["bert.embeddings.position_ids"] = torch.arange(64)[None]
    published["cls.predictions.decoder.weight"] = expected["bert.embeddings.word_embeddings.weight"].clone()
    published["cls.predictions.decoder.bias"] = expected["cls.predictions.bias"].clone()
    save_file(published, there / "model.safetensors", metadata={"format": "pt"})
    content = json.loads((there / "config.json").read_text())
    content |= {"architectures": ["BertForMaskedLM"], "gradient_checkpointing": False}
    (there / "config.json").write_text(json.dumps(content))
    vocabulary = AutoTokenizer.from_pretrained(there).get_vocab()
    (there / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)) + "\n")
    (there / "tokenizer.json").unlink()
    (there / "tokenizer_config.json").write_text('{"do_lower_case": false}')

    taken = convert_from_hf(there, tmp_path / "here").parity
    assert taken is not None
    assert taken.float32.largest_difference < 1e-5
    convert_to_hf(tmp_path / "here", tmp_path / "again")
    assert_equal(weights_in(tmp_path / "again"), expected)
    model = hf.BertForPreTraining.from_pretrained(there).eval()  # by its own renaming
    again = hf.BertForPreTraining.from_pretrained(tmp_path / "again").eval()
    ids = torch.arange(60)[None]
    with torch.no_grad():
        said = [m(ids).seq_relationship_logits for m in (model, again)]
    assert torch.allclose(*said, atol=1e-6)

    section = yaml.safe_load((tmp_path / "here" / "model.yaml").read_text())
    assert section["model"]["add_pooling_layer"]
    section["model"] |= {"add_pooling_layer": False}  # the sentence objective may stay behind
    training = {"output_dir": str(tmp_path), "steps": 1, "global_batch_size": 1, "sequence_length": 64}
    begun = checkpoint_to_begin_with(parse_config({**section, "data": {"train": "-"}, "training": training}))
    assert begun is not None
    assert begun.path.parent.parent == tmp_path / "here"

    published["cls.predictions.decoder.bias"][7] += 1
    save_file(published, there / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConversionError, match=r"decoder\.bias is not equal to cls\.predictions\.bias; in a BERT they"):
        convert_from_hf(there, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_t5_as_it_was_first_published(saved: Callable[..., Path], sources: list[str], tmp_path: Path) -> None:
    """A pickled file, the embedding under all its names, a table that nothing reads, and SentencePiece's own file."""
    there = saved("flan-t5")
    (there / "tokenizer.json").unlink()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in sources[:4] for line in text.splitlines() if line]),
        model_prefix=str(there / "spiece"),
        vocab_size=380,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    hf.T5Tokenizer(str(there / "spiece.model"), extra_ids=10, legacy=True).save_pretrained(there)
    assert not (there / "tokenizer.json").exists()
    expected = weights_in(there)
    pickled = expected | {f"{stack}.embed_tokens.weight": expected["shared.weight"] for stack in ("encoder", "decoder")}
    pickled["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.ones(8, 4)
    (there / "model.safetensors").unlink()
    torch.save(pickled, there / "pytorch_model.bin")
    convert_from_hf(there, tmp_path / "here")
    convert_to_hf(tmp_path / "here", tmp_path / "again")
    assert_equal(weights_in(tmp_path / "again"), expected)
    given = ["def <extra_id_0>: return <extra_id_9>", "import"]
    assert len({str(AutoTokenizer.from_pretrained(folder)(given)) for folder in (there, tmp_path / "again")}) == 1


def test_the_vocabulary_is_padded_on_the_way_in_and_cut_on_the_way_out(
    saved: Callable[..., Path], tmp_path: Path
) -> None:
    there = saved("flan-t5")
    convert_from_hf(there, tmp_path / "here", vocab_size=512)
    weights = Weights(find_checkpoint(tmp_path / "here"))
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        assert weights.read(name).shape[0] == 512
        assert not weights.read(name)[400:].any()
    made = convert_to_hf(tmp_path / "here", tmp_path / "again")
    assert made.padded_rows_removed == 112
    assert_equal(weights_in(tmp_path / "again"), weights_in(there))


def test_what_was_fed_to_a_t5_is_what_its_tokenizer_gives(sources: list[str], tmp_path: Path) -> None:
    """One of ours: sentinels in a text are those tokens, the end stands after it, and `generate` begins as in
    training."""
    sentinels = [f"<extra_id_{n}>" for n in range(5)]
    model = random_model(hf.T5ForConditionalGeneration, hf.T5Config(**T5, pad_token_id=3, eos_token_id=2))
    model.save_pretrained(tmp_path / "there")
    convert_from_hf(tmp_path / "there", tmp_path / "here", verify=False)
    tokenizer = train_sentencepiece(sources, tmp_path / "t5.model", 400, special_tokens=["<pad>", *sentinels])
    convert_to_hf(tmp_path / "here", tmp_path / "again", tokenizer=tokenizer)

    exported = AutoTokenizer.from_pretrained(tmp_path / "again")
    given = exported("def <extra_id_0>(self): <extra_id_1>", return_tensors="pt")
    assert [i for i in given["input_ids"][0].tolist() if 3 < i < 9] == [4, 5]
    assert given["input_ids"][0, -1] == exported.eos_token_id == 2
    assert exported.convert_ids_to_tokens(range(3, 9)) == ["<pad>", *sentinels]
    assert exported.pad_token_id == 3
    again = hf.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again")
    assert again.generation_config.decoder_start_token_id == again.config.decoder_start_token_id == 3
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = 3
    said = [m.eval().generate(**given, max_new_tokens=12, do_sample=False) for m in (again, model)]
    assert torch.equal(*said)


# ---------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("name", "changed", "match"),
    [
        ("t5", {"dense_act_fn": "tanh"}, "dense_act_fn is 'tanh', which model.hidden_act cannot be"),
        ("t5", {"tie_word_embeddings": False}, "lacks lm_head.weight"),
        ("t5", {"decoder_start_token_id": 1}, "decoder here starts from the tokenizer's padding, 0"),
        (
            "flan-t5",
            {"feed_forward_proj": "gelu", "is_gated_act": False, "dense_act_fn": "gelu"},
            r"lacks decoder\.block\.0.*wi\.weight",
        ),
        ("flan-t5", {"num_decoder_layers": 3}, r"holds decoder\.block\.3\..*, which no row of the map of T5 takes"),
        ("t5", {"d_kv": 8}, r"SelfAttention.o.weight is \(32, 48\), and config.json makes it \(32, 32\)"),
        ("roformer", {"rotary_value": True}, "rotary_value is True"),
        ("roformer", {"embedding_size": 16}, "embedding_size is 16"),
        ("roberta", {"hidden_act": "relu"}, "hidden_act is 'relu', and the RoBERTa models here have 'gelu'"),
        ("roberta", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ("roberta", {"pad_token_id": None}, "pad_token_id is null"),
    ],
)
def test_what_is_not_understood(
    name: str, changed: dict[str, Any], match: str, saved: Callable[..., Path], tmp_path: Path
) -> None:
    there = saved(name)
    content = json.loads((there / "config.json").read_text())
    (there / "config.json").write_text(json.dumps({**content, **changed}))
    with pytest.raises(ConversionError, match=match):
        convert_from_hf(there, tmp_path / "here")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
