"""The proof of a conversion: both models read the same real text and must say the same."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from bigtrain.checkpoint.catalog import Checkpoint
from bigtrain.config import ModelConfig
from bigtrain.config.tasks import FinetuneConfig
from bigtrain.convert.parity import Agreement, Parity
from bigtrain.convert.saying import Sample, hf_class, hf_logits, own_logits, samples_of
from bigtrain.convert.source import digest_of, model_config
from bigtrain.convert.texts import find_reading
from bigtrain.convert.tokenizer import is_hugging_faces_own
from bigtrain.data.framing import Framing
from bigtrain.data.tokenizer import Tokenizer
from bigtrain.errors import ConversionError
from bigtrain.models.size import parameter_count

TOLERANCE = 1e-4
"""Largest difference allowed between two logits in float32, as a part of the largest logit (or of 1).

Both models compute the same function of the same weights and differ only in the order in which they add up. Float32
rounds to 6e-8 of a number, and the error of a logit grows slowly with width and depth: 2e-6 to 1e-5 is what correct
conversions show. A wrong one (a head in another place, another rotary layout, a norm left out) moves logits by a
sizeable part of themselves. 1e-4 lies well away from both.
"""

PARITY = "parity.json"
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
    checkpoint: Checkpoint,
    folder: Path,
    tokenizer: Tokenizer,
    text: Path | None = None,
    run: Path | None = None,
    *,
    framing: Framing | None = None,
    task: FinetuneConfig | None = None,
) -> Parity:
    """Compare an exported folder with the checkpoint it came from, and write `parity.json` into it.

    Args:
        checkpoint: The source.
        folder: The Hugging Face folder.
        tokenizer: The tokenizer of the model's data.
        text: A text file; default: the run's validation data if it is there, else Python's standard library.
        run: The folder of the run.
        framing: What stood around texts in training, where something did.
        task: What the model was fine-tuned for, if that gave it another head.

    Raises:
        ConversionError: The logits differ beyond the tolerance, or the exported tokenizer gives other ids.
        DataError: The text cannot be read, or is empty.
    """
    reading = find_reading(model_config(checkpoint), tokenizer, text, run)
    _check_tokenizer(folder, tokenizer, reading.texts, framing)
    samples = samples_of(model_config(checkpoint), folder, reading, framing if task is not None else None, task)
    parity = _compare_models(checkpoint, folder, reading.origin, samples, digest_of(checkpoint), tokenizer, task)
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
    samples = samples_of(model_config(checkpoint), folder, reading)
    parity = _compare_models(checkpoint, folder, reading.origin, samples, digest, tokenizer)
    return _certified(replace(parity, checkpoint=str(checkpoint.path.relative_to(output))), output / PARITY)


def _compare_models(
    checkpoint: Checkpoint,
    folder: Path,
    origin: str,
    samples: Sequence[Sample],
    digest: str,
    tokenizer: Tokenizer | None,
    task: FinetuneConfig | None = None,
) -> Parity:
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    dtype: torch.dtype = config.dtype or torch.float32
    rows = config.vocab_size
    trained, rounded = own_logits(checkpoint, dtype, samples, rows, task)
    kind = hf_class(config, checkpoint, task)
    theirs, tied = hf_logits(kind, folder, torch.float32, samples)
    float32 = compare(rounded, theirs)
    as_saved = float32
    if dtype != torch.float32:
        as_saved = compare(trained, hf_logits(kind, folder, dtype, samples)[0])
    return Parity(
        checkpoint=str(checkpoint.path),
        step=checkpoint.state.step,
        source_sha256=digest,
        family=config.model_type,
        text=origin,
        tokens=sum(sample["input_ids"].numel() for sample in samples),
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


def _check_tokenizer(folder: Path, tokenizer: Tokenizer, texts: Sequence[str], framing: Framing | None = None) -> None:
    """Whether both give the same ids, and with `framing` that the one in the folder also puts these around a text."""
    exported = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    options = {"split_special_tokens": True}  # what is spelled like one in a text is text to ours
    if is_hugging_faces_own(tokenizer) and framing is None:
        options["add_special_tokens"] = False
    for text in texts:
        ours, theirs = tokenizer.encode(text), exported(text, verbose=False, **options)["input_ids"]
        if framing is not None:
            ours, _ = framing.around(ours)
        if ours != theirs:
            at = next(i for i, pair in enumerate(zip([*ours, None], [*theirs, None], strict=False)) if len({*pair}) > 1)
            raise ConversionError(
                f"transformers' tokenizer gives other ids than {tokenizer.path}, first at token {at} "
                f"({ours[at : at + 4]}, there {theirs[at : at + 4]}) of {text[:40]!r}...; nothing was written"
            )


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
