"""The last step of preparing: finished parts become a dataset. Killed at any point, it can be done again."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bigtrain.data.manifest import ShardRecord, token_dtype
from bigtrain.data.tokenizer import Tokenizer
from bigtrain.data.writing import Documents, ShardWriter, write_manifest
from bigtrain.errors import DataError
from bigtrain.prepare.partial import Closed, Partial


def complete(partial: Partial, output: Path, parts: int, tokenizer: Tokenizer, provenance: dict[str, Any]) -> bool:
    """Make `output` of the finished parts, and remove `OUTPUT.partial`; False if a part is not finished.

    Raises:
        DataError: nothing is left for training or, where a share is to be held out, for validation. Then nothing
            is left of `OUTPUT.partial` either: the same command would end the same way.
    """
    closed = partial.all_closed(parts)
    if closed is None:
        return False
    options = provenance["options"]
    try:
        _check_not_empty(partial, closed, options["validation_fraction"])
    except DataError:
        shutil.rmtree(partial.path)
        raise
    _write_rejects(partial, closed)
    _move_train(partial, closed, tokenizer, provenance)
    if options["validation_fraction"]:
        _merge_validation(partial, closed, tokenizer, options["tokens_per_shard"], provenance)
    partial.output.rename(output)
    shutil.rmtree(partial.path, ignore_errors=True)
    return True


def count_reasons(rejects: Path) -> Counter[str]:
    """How many of the records that a `rejects.jsonl` lists were left out for which kind of reason."""
    with rejects.open(encoding="utf-8") as file:
        return Counter(json.loads(line)["reason"].split(":")[0] for line in file)


def _check_not_empty(partial: Partial, closed: Sequence[Closed], fraction: float) -> None:
    documents = sum(one.train.documents for one in closed if one.train)
    if not documents:
        raise DataError(f"no document is left for training; {_first_reject(partial, closed)}")
    if fraction and not any(one.validation for one in closed):
        raise DataError(f"validation_fraction {fraction} holds out none of {documents} documents")


def _first_reject(partial: Partial, closed: Sequence[Closed]) -> str:
    rejected = sum(one.rejected for one in closed)
    if not rejected:
        return "the inputs hold none"
    first = json.loads(next(line for one in closed for line in partial.rejects(one)))
    return f"{rejected} were rejected, the first {first['source']} record {first['position']}: {first['reason']}"


def _write_rejects(partial: Partial, closed: Sequence[Closed]) -> None:
    with (partial.output / "rejects.jsonl").open("w", encoding="utf-8") as file:
        for one in closed:
            file.writelines(partial.rejects(one))


def _move_train(partial: Partial, closed: Sequence[Closed], tokenizer: Tokenizer, provenance: dict[str, Any]) -> None:
    folder = partial.output / "train"
    folder.mkdir(exist_ok=True)
    shards: list[ShardRecord] = []
    for one in closed:
        if one.train:
            name = f"shard-{len(shards):05d}.arrow"
            if partial.shard(one).exists():  # else it was moved before this was killed
                partial.shard(one).rename(folder / name)
            shards.append(replace(one.train, file=name))
    write_manifest(folder, tokenizer, sum(one.train_bytes for one in closed), shards, provenance)


def _merge_validation(
    partial: Partial, closed: Sequence[Closed], tokenizer: Tokenizer, tokens_per_shard: int, provenance: dict[str, Any]
) -> None:
    """Held-out documents of all parts in shards of the usual size: a part has few."""
    folder = partial.output / "validation"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    writer = ShardWriter(folder, tokenizer, tokens_per_shard)
    for one in closed:
        if one.validation:
            for documents in _read_shard(partial.shard(one, held_out=True), token_dtype(tokenizer.vocab_size)):
                writer.add(replace(documents, bytes=one.validation_bytes))
    writer.close(provenance)


def _read_shard(path: Path, dtype: str) -> Iterator[Documents]:
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as file:
        batch = file.get_batch(0)
        column = batch.column("tokens")
        yield Documents(
            tokens=np.array(column.values.to_numpy(), dtype=dtype),
            lengths=np.diff(column.offsets.to_numpy()),
            sources=batch.column("source").to_pylist(),
            positions=batch.column("position").to_pylist(),
            bytes=0,
        )
