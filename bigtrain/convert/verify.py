"""The proof of a conversion: both models read the same real text and must say the same."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from bigtrain.checkpoint.catalog import Checkpoint
from bigtrain.config import ModelConfig
from bigtrain.convert.own_model import own_model, own_shapes
from bigtrain.convert.parity import Agreement, Parity
from bigtrain.convert.source import digest_of, model_config
from bigtrain.convert.texts import Reading, find_reading
from bigtrain.convert.tokenizer import is_hugging_faces_own
from bigtrain.convert.weights import Weights
from bigtrain.data.batch import Batch
from bigtrain.data.encoder import EncoderBatch
from bigtrain.data.loader import CausalBatch
from bigtrain.data.tokenizer import Tokenizer
from bigtrain.errors import ConversionError
from bigtrain.models.size import parameter_count
from bigtrain.parallel import compat

TOLERANCE = 1e-4
"""Largest difference allowed between two logits in float32, as a part of the largest logit (or of 1).

Both models compute the same function of the same weights and differ only in the order in which they add up. Float32
rounds to 6e-8 of a number, and the error of a logit grows slowly with width and depth: 2e-6 to 1e-5 is what correct
conversions show. A wrong one (a head in another place, another rotary layout, a norm left out) moves logits by a
sizeable part of themselves. 1e-4 lies well away from both.
"""

PARITY = "parity.json"
_CLASSES = {"BertModel": AutoModel, "BertForMaskedLM": AutoModelForMaskedLM, "BertForPreTraining": AutoModelForMaskedLM}
"""Those that are no causal language models."""
_WHAT_ELSE = 2_000_000_000
"""Bytes that a comparison takes beside the weights: the libraries, activations, logits."""


def check_memory(model: ModelConfig) -> None:
    """Raises:
    ConversionError: A model that is to be compared in float32 does not fit into memory.
    """
    needed = 4 * parameter_count(model) + _WHAT_ELSE
    on_gpu = torch.cuda.is_available()
    free: float = torch.cuda.mem_get_info()[0] if on_gpu else _available()
    if needed > free:
        where = "on the GPU" if on_gpu else "here"
        raise ConversionError(
            f"to compare the models in float32 takes about {needed / 1e9:.0f} GB of memory, and {free / 1e9:.0f} GB "
            f"are free {where}: convert where there is more, or with --no-verify, which the model card will say"
        )


def _available() -> float:
    """Bytes that programs can get without swapping, as Linux tells; elsewhere no bound is known."""
    fields = Path("/proc/meminfo")
    if not fields.is_file():
        return math.inf
    lines = fields.read_text(encoding="ascii").splitlines()
    (kibibytes,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(kibibytes) * 1024


def verify_export(
    checkpoint: Checkpoint, folder: Path, tokenizer: Tokenizer, text: Path | None = None, run: Path | None = None
) -> Parity:
    """Compare an exported folder with the checkpoint it came from, and write `parity.json` into it.

    Args:
        checkpoint: The source.
        folder: The Hugging Face folder.
        tokenizer: The tokenizer of the model's data.
        text: A text file; default: the run's validation data if it is there, else Python's standard library.
        run: The folder of the run.

    Raises:
        ConversionError: The logits differ beyond the tolerance, or the exported tokenizer gives other ids.
        DataError: The text cannot be read, or is empty.
    """
    reading = find_reading(model_config(checkpoint), tokenizer, text, run)
    _check_tokenizer(folder, tokenizer, reading.texts)
    parity = _compare_models(checkpoint, folder, reading, digest_of(checkpoint), tokenizer)
    return _certified(parity, folder / PARITY)


def verify_intake(
    checkpoint: Checkpoint, folder: Path, digest: str, tokenizer: Tokenizer | None, text: Path | None, output: Path
) -> Parity:
    """Compare a checkpoint with the Hugging Face folder it came from, and write `parity.json` into `output`.

    Args:
        checkpoint: What was made.
        folder: The Hugging Face folder.
        digest: Of the folder's weights.
        tokenizer: The model's, if the folder has one.
        text: A text file; default: Python's standard library.
        output: Where the certificate is to lie.

    Raises:
        ConversionError: The logits differ beyond the tolerance.
        DataError: The text cannot be read, or is empty.
    """
    reading = find_reading(model_config(checkpoint), tokenizer, text, None)
    if tokenizer is not None:
        _check_tokenizer(folder, tokenizer, reading.texts)
    parity = _compare_models(checkpoint, folder, reading, digest, tokenizer)
    return _certified(replace(parity, checkpoint=str(checkpoint.path.relative_to(output))), output / PARITY)


def _compare_models(
    checkpoint: Checkpoint, folder: Path, reading: Reading, digest: str, tokenizer: Tokenizer | None
) -> Parity:
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    dtype: torch.dtype = config.dtype or torch.float32
    rows = config.vocab_size
    trained, rounded = _own_logits(checkpoint, dtype, reading.sequences, rows)
    theirs, tied = _hf_logits(folder, torch.float32, reading.sequences)
    float32 = compare(rounded, theirs)
    as_saved = float32
    if dtype != torch.float32:
        as_saved = compare(trained, _hf_logits(folder, dtype, reading.sequences)[0])
    return Parity(
        checkpoint=str(checkpoint.path),
        step=checkpoint.state.step,
        source_sha256=digest,
        family=config.model_type,
        text=reading.origin,
        tokens=reading.tokens,
        tolerance=TOLERANCE * max(1.0, float32.largest_logit),
        float32=float32,
        as_saved=as_saved,
        dtype=str(dtype).removeprefix("torch."),
        vocabulary_rows=rows,
        padded_rows_removed=model_config(checkpoint).vocab_size - rows,
        embeddings_tied=tied,
        tokenizer_sha256=None if tokenizer is None else tokenizer.fingerprint,
        files=sorted(file.name for file in folder.iterdir()),
        transformers=transformers.__version__,
    )


def _certified(parity: Parity, path: Path) -> Parity:
    float32 = parity.float32
    if not float32.largest_difference <= parity.tolerance:  # NaN fails as well
        raise ConversionError(
            f"transformers' model differs from BigTrain's: logits by up to {float32.largest_difference:.3g} "
            f"(mean {float32.mean_difference:.3g}), allowed are {parity.tolerance:.3g}; nothing was written"
        )
    path.write_text(json.dumps(asdict(parity), indent=2) + "\n", encoding="utf-8")
    return parity


def _check_tokenizer(folder: Path, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    exported = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    options = {"add_special_tokens": False} if is_hugging_faces_own(tokenizer) else {}
    for text in texts:
        ours, theirs = tokenizer.encode(text), exported(text, verbose=False, **options)["input_ids"]
        if ours != theirs:
            at = next(i for i, pair in enumerate(zip([*ours, None], [*theirs, None], strict=False)) if len({*pair}) > 1)
            raise ConversionError(
                f"transformers' tokenizer gives other ids than {tokenizer.path}, first at token {at} "
                f"({ours[at : at + 4]}, there {theirs[at : at + 4]}) of {text[:40]!r}...; nothing was written"
            )


@torch.no_grad()
def _own_logits(
    checkpoint: Checkpoint, dtype: torch.dtype, sequences: Sequence[Tensor], rows: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Of the trained model, and of the same with its weights rounded to the saved type; both compute in float32.

    Where a model has no head, of its embedding used as one.
    """
    device = compat.device()

    def read(ids: Tensor) -> Tensor:
        batch = _batch(ids.to(device), shape.architecture == "bert")
        if missing:
            return (model.hidden_states(batch)[:, 0] @ model.embedding.word_embeddings.weight[:rows].T).cpu()
        return model.predictions(batch)[0, :, :rows].cpu()

    shape = model_config(checkpoint)
    missing = own_shapes(shape).keys() - Weights(checkpoint).shapes.keys() if shape.architecture == "bert" else set()
    with own_model(checkpoint, but=missing) as model:
        trained = [read(ids) for ids in sequences]
        if dtype == torch.float32:
            return trained, trained
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
        return trained, [read(ids) for ids in sequences]


def _batch(ids: Tensor, of_bert: bool) -> Batch:
    """Text to be read, [1, s]; nothing is a target."""
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    if of_bert:
        return EncoderBatch(ids, ids, torch.zeros(ids.shape), torch.zeros_like(ids), None)
    return CausalBatch(ids, ids, torch.zeros(ids.shape), positions)


@torch.no_grad()
def _hf_logits(folder: Path, dtype: torch.dtype, sequences: Sequence[Tensor]) -> tuple[list[Tensor], bool]:
    """And whether the model's output layer is its embedding."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    capped = getattr(config, "attn_logit_softcapping", None) is not None  # of which but one of its ways knows
    way = "eager" if capped else None
    kind = _CLASSES.get((config.architectures or [""])[0], AutoModelForCausalLM)
    model = kind.from_pretrained(folder, dtype=dtype, attn_implementation=way, local_files_only=True)
    model = model.to(compat.device()).eval()
    if kind is AutoModel:
        embedding = model.get_input_embeddings().weight
        said = [model(ids.to(compat.device())).last_hidden_state[0] @ embedding.T for ids in sequences]
        return [logits.float().cpu() for logits in said], True
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return [model(ids.to(compat.device())).logits[0].float().cpu() for ids in sequences], tied


def compare(reference: Sequence[Tensor], other: Sequence[Tensor]) -> Agreement:
    """Compare logits, lists of [s, vocab_size] in float32."""
    largest, means, kl, agree = [], [], [], []
    for expected, got in zip(reference, other, strict=True):
        difference = (expected - got).abs()
        largest.append(difference.max())
        means.append(difference.mean(-1))
        log_p, log_q = expected.double().log_softmax(-1), got.double().log_softmax(-1)
        kl.append((log_p.exp() * (log_p - log_q)).sum(-1))
        agree.append((expected.argmax(-1) == got.argmax(-1)).float())
    return Agreement(
        largest_difference=float(torch.stack(largest).max()),  # a NaN stays one
        mean_difference=float(torch.cat(means).mean()),
        largest_logit=float(torch.stack([expected.abs().max() for expected in reference]).max()),
        kl_divergence=float(torch.cat(kl).mean()),
        greedy_agreement=float(torch.cat(agree).mean()),
    )
