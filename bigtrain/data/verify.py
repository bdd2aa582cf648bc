"""Everything of a dataset, read and compared with what `dataset.json` says of it."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from bigtrain.data.cache import Cache
from bigtrain.data.manifest import MANIFEST, Manifest, ShardRecord, local_sizes, parse_manifest, read_manifest
from bigtrain.data.mapped import Shard
from bigtrain.data.places import is_local
from bigtrain.data.remote import RemoteFolder, Retry, remote_place
from bigtrain.errors import DataError

THREADS = 8
"""Readers: hashing lets other threads run, and waiting for a server all the more."""

Fault = str | None
"""What is wrong with a file; None: nothing."""


def verify(
    path: str | Path,
    cache: Cache | None = None,
    retry: Retry | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Read the whole dataset in the folder `path`, or behind the URL, and compare every checksum; its manifest if
    all is well. Of each shard the documents' borders, their sources and the ids are looked at too.

    Args:
        path: A folder, or a URL.
        cache: On whose disk a shard from a URL lies while it is looked at.
        retry: How often a server is asked.
        progress: Told the bytes looked at so far, and those of the whole dataset.

    Raises:
        DataError: names every file that is missing, damaged, swapped for another or not the dataset's.
    """
    folder = remote_place(path) if isinstance(path, str) else path
    if is_local(folder):
        manifest, remote = read_manifest(folder), None
        names = {*local_sizes(folder, look_at_sizes=False)}
    else:
        remote = RemoteFolder(folder, retry or Retry())
        manifest = parse_manifest(remote.read(MANIFEST), str(folder / MANIFEST))
        names = {*(remote.sizes() or ())}
    cache = cache or Cache()
    recorded = {shard.sha256: shard.file for shard in manifest.shards}

    def look(shard: ShardRecord) -> Fault:
        if remote is None:
            return _fault(folder / shard.file, shard, manifest, recorded)
        with cache.scratch() as file:
            try:
                if remote.fetch(shard.file, shard.size_bytes, file) != shard.sha256:
                    remote.fetch(shard.file, shard.size_bytes, file)  # it may have been the way
            except DataError as error:
                return str(error)
            return _fault(Path(file.name), shard, manifest, recorded)

    faults = dict(_in_threads(look, manifest.shards, progress))
    faults[manifest.tokenizer.file] = _tokenizer_fault(folder, remote, manifest)
    for name in names - {shard.file for shard in manifest.shards}:
        if name.endswith(".arrow"):
            faults[name] = f"{MANIFEST} knows no such shard"
    wrong = [f"  {name}: {fault}" for name, fault in sorted(faults.items()) if fault]
    if wrong:
        raise DataError("\n".join([f"{folder}: {len(wrong)} of its files are not as they should be", *wrong]))
    return manifest


def _in_threads(
    look: Callable[[ShardRecord], Fault], shards: Sequence[ShardRecord], progress: Callable[[int, int], None]
) -> Iterator[tuple[str, Fault]]:
    """Each shard's name and fault, in no order."""
    total, done = sum(shard.size_bytes for shard in shards), 0
    with ThreadPoolExecutor(THREADS, thread_name_prefix="verify") as threads:
        looks = {threads.submit(look, shard): shard for shard in shards}
        try:
            for finished in as_completed(looks):
                shard = looks[finished]
                done += shard.size_bytes
                progress(done, total)
                yield shard.file, finished.result()
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise


def _fault(path: Path, shard: ShardRecord, manifest: Manifest, recorded: dict[str, str]) -> Fault:
    """Of a shard's file or a copy of it; `recorded` gives the name for every checksum of the dataset."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
    except OSError as error:
        return f"missing or unreadable ({error.strerror})"
    if digest in recorded and digest != shard.sha256:
        return f"swapped, this is {recorded[digest]}"
    if size != shard.size_bytes:
        return f"has {size} bytes, {MANIFEST} says {shard.size_bytes}"
    if digest != shard.sha256:
        return "damaged, its checksum differs"
    try:
        opened = Shard(path, shard, manifest.dtype, Path(shard.file))
        ends = opened.offsets[1:] - 1
        opened.sources  # noqa: B018 (looks at them)
    except DataError as error:
        return f"as written, but wrong: {error}"
    largest = int(opened.tokens.max(initial=0))
    if largest >= manifest.tokenizer.vocab_size:
        return f"as written, but wrong: has the id {largest}, the vocabulary ends at {manifest.tokenizer.vocab_size}"
    if (opened.tokens[ends] != manifest.tokenizer.eos_id).any():
        return f"as written, but wrong: a document does not end with the id {manifest.tokenizer.eos_id}"
    return None


def _tokenizer_fault(folder: Path, remote: RemoteFolder | None, manifest: Manifest) -> Fault:
    record = manifest.tokenizer
    try:
        content = (folder / record.file).read_bytes() if remote is None else remote.read(record.file)
    except OSError as error:
        return f"missing or unreadable ({error.strerror})"
    except DataError as error:
        return str(error)
    if hashlib.sha256(content).hexdigest() != record.fingerprint:
        return "not the tokenizer that made the dataset, its checksum differs"
    return None
