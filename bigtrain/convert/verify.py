"""The proof of a conversion: both models read the same real text and must say the same."""

import json
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from bigtrain.checkpoint.catalog import Checkpoint
from bigtrain.convert.own_model import own_model
from bigtrain.convert.parity import Agreement, Parity
from bigtrain.convert.source import model_config, run_config
from bigtrain.data.shards import check_tokenizer, open_dataset
from bigtrain.data.tokenizer import Tokenizer
from bigtrain.errors import ConversionError, DataError
from bigtrain.parallel import compat

TOLERANCE = 1e-4
"""Largest difference allowed between two logits in float32, as a part of the largest logit (or of 1).

Both models compute the same function of the same weights and differ only in the order in which they add up. Float32
rounds to 6e-8 of a number, and the error of a logit grows slowly with width and depth: 2e-6 to 1e-5 is what correct
conversions show. A wrong one (a head in another place, another rotary layout, a norm left out) moves logits by a
sizeable part of themselves. 1e-4 lies well away from both.
"""

PARITY = "parity.json"
SEQUENCES = 4
SEQUENCE_LENGTH = 256
_DOCUMENT_CHARACTERS = 20_000


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
    origin, texts = _texts(run, tokenizer, text)
    sequences = _sequences(texts, tokenizer, model_config(checkpoint).max_position_embeddings)
    if not sequences:
        raise DataError(f"{origin}: holds no text to compare the models on")
    _check_tokenizer(folder, tokenizer, texts)
    dtype: torch.dtype = AutoConfig.from_pretrained(folder, local_files_only=True).dtype
    trained, rounded = _own_logits(checkpoint, dtype, sequences)
    float32 = _compare(rounded, _exported_logits(folder, torch.float32, sequences))
    as_saved = _compare(trained, _exported_logits(folder, dtype, sequences)) if dtype != torch.float32 else float32
    parity = Parity(
        checkpoint=str(checkpoint.path),
        step=checkpoint.state.step,
        text=origin,
        tokens=sum(sequence.numel() for sequence in sequences),
        tolerance=TOLERANCE * max(1.0, float32.largest_logit),
        float32=float32,
        as_saved=as_saved,
        dtype=str(dtype).removeprefix("torch."),
        transformers=transformers.__version__,
    )
    if not float32.largest_difference <= parity.tolerance:  # NaN fails as well
        raise ConversionError(
            f"the exported model differs from the trained one: logits by up to {float32.largest_difference:.3g} "
            f"(mean {float32.mean_difference:.3g}), allowed are {parity.tolerance:.3g}; nothing was written"
        )
    (folder / PARITY).write_text(json.dumps(asdict(parity), indent=2) + "\n", encoding="utf-8")
    return parity


# ------------------------------------------------------------------------------------------------- the text


def _texts(run: Path | None, tokenizer: Tokenizer, given: Path | None) -> tuple[str, list[str]]:
    """Where text to compare on comes from, and enough of it."""
    if given is not None:
        try:
            return str(given), _enough(iter([given.read_text(encoding="utf-8")]), tokenizer)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{given}: cannot be read as text ({error})") from None
    config = run_config(run)
    held_out = Path(config.data.validation) if config is not None and config.data.validation else None
    if held_out is not None and held_out.is_dir():
        return str(held_out), _enough(_documents(held_out, tokenizer), tokenizer)
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = (path.read_text(encoding="utf-8", errors="replace") for path in sorted(library.glob("*.py")))
    return "the Python standard library's source", _enough(sources, tokenizer)


def _documents(path: Path, tokenizer: Tokenizer) -> Iterator[str]:
    dataset = open_dataset(path)
    check_tokenizer(dataset, tokenizer)
    for index in range(dataset.documents):
        yield tokenizer.decode(dataset.document(index).tokens[:-1].tolist())


def _enough(texts: Iterator[str], tokenizer: Tokenizer) -> list[str]:
    found: list[str] = []
    tokens = 0
    for text in texts:
        if not text:
            continue
        found.append(text[:_DOCUMENT_CHARACTERS])
        tokens += len(tokenizer.encode(found[-1]))
        if tokens >= SEQUENCES * SEQUENCE_LENGTH:
            break
    return found


def _sequences(texts: Sequence[str], tokenizer: Tokenizer, longest: int) -> list[Tensor]:
    """The texts' tokens, each text with its end, cut into a few sequences: int64 [1, s]."""
    ids = [i for tokens in tokenizer.encode_batch(list(texts)) for i in [*tokens, tokenizer.eos_id]]
    length = min(SEQUENCE_LENGTH, longest)
    cuts = range(0, min(len(ids), SEQUENCES * length), length)
    return [torch.tensor([ids[start : start + length]]) for start in cuts]


def _check_tokenizer(folder: Path, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    exported = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for text in texts:
        ours, theirs = tokenizer.encode(text), exported(text, verbose=False)["input_ids"]
        if ours != theirs:
            at = next(i for i, pair in enumerate(zip([*ours, None], [*theirs, None], strict=False)) if len({*pair}) > 1)
            raise ConversionError(
                f"the exported tokenizer gives other ids than {tokenizer.path}, first at token {at} "
                f"({ours[at : at + 4]}, exported {theirs[at : at + 4]}) of {text[:40]!r}...; nothing was written"
            )


# ----------------------------------------------------------------------------------------------- the models


@torch.no_grad()
def _own_logits(
    checkpoint: Checkpoint, dtype: torch.dtype, sequences: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Of the trained model, and of the same with its weights rounded to the saved type; both compute in float32."""
    with own_model(checkpoint) as model:
        trained = [model(ids.to(compat.device()), None, None)[0].cpu() for ids in sequences]
        if dtype == torch.float32:
            return trained, trained
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
        return trained, [model(ids.to(compat.device()), None, None)[0].cpu() for ids in sequences]


@torch.no_grad()
def _exported_logits(folder: Path, dtype: torch.dtype, sequences: Sequence[Tensor]) -> list[Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).to(compat.device()).eval()
    return [model(ids.to(compat.device())).logits[0].float().cpu() for ids in sequences]


def _compare(reference: Sequence[Tensor], other: Sequence[Tensor]) -> Agreement:
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
