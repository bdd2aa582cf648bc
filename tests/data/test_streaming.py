"""Datasets in a bucket, read from a server that speaks S3's API through a proxy that spoils its answers."""

import json
import logging
import resource
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from faulty import FaultyProxy
from s3fs import S3FileSystem

from bigtrain.data import remote
from bigtrain.data.cache import Cache
from bigtrain.data.remote import Retry, remote_place
from bigtrain.data.samples import Samples
from bigtrain.data.shards import TokenDataset, open_dataset
from bigtrain.data.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer
from bigtrain.data.verify import verify
from bigtrain.data.writing import Documents, write_dataset
from bigtrain.errors import DataError

URL = "s3://data/train"
QUICK = Retry(attempts=4, first_wait=0.001, longest_wait=0.002)
SHARDS = 6


@pytest.fixture(scope="module")
def folder(bpe: SentencePieceTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of SHARDS shards of about 3 kB, of 500 tokens and 50 documents each."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(3, 700, SHARDS * 500)
    tokens[9::10] = bpe.eos_id
    count = len(tokens) // 10
    documents = Documents(tokens, np.full(count, 10), ["file"] * count, list(range(count)), bytes=len(tokens))
    output = tmp_path_factory.mktemp("streaming") / "train"
    write_dataset(output, [documents], bpe, tokens_per_shard=500)
    return output


@pytest.fixture(scope="module")
def proxy_of_all(s3_port: int) -> Iterator[FaultyProxy]:
    """In front of the server; its address and keys are in the environment, as a user has them."""
    proxy = FaultyProxy(s3_port)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.address)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        S3FileSystem.clear_instance_cache()
        yield proxy
        S3FileSystem.clear_instance_cache()
    proxy.close()


@pytest.fixture
def proxy(proxy_of_all: FaultyProxy) -> Iterator[FaultyProxy]:
    proxy_of_all.forget()
    yield proxy_of_all
    proxy_of_all.release.set()


def upload(client: S3FileSystem, folder: Path) -> None:
    for path in folder.iterdir():
        client.pipe(f"data/train/{path.name}", path.read_bytes())


@pytest.fixture(scope="module")
def filled(proxy_of_all: FaultyProxy, folder: Path) -> S3FileSystem:
    """A client of our own; the dataset is at URL."""
    client = S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    client.mkdir("data")
    upload(client, folder)
    return client


@pytest.fixture
def bucket(filled: S3FileSystem, proxy: FaultyProxy, folder: Path) -> Iterator[S3FileSystem]:
    """The same, for tests that change it."""
    yield filled
    proxy.forget()
    filled.rm("data/train", recursive=True)
    upload(filled, folder)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def opened(filled: S3FileSystem, proxy: FaultyProxy, cache: Cache) -> Iterator[TokenDataset]:
    dataset = open_dataset(URL, cache, QUICK)
    yield dataset
    dataset.close()


def everything(dataset: TokenDataset) -> list[int]:
    return dataset.read(0, dataset.tokens).tolist()


def names(*numbers: int) -> list[str]:
    return [f"shard-{number:05d}.arrow" for number in numbers]


def test_it_is_the_dataset_on_disk(
    folder: Path, opened: TokenDataset, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens, documents, order and tokenizer, in whatever pieces they come; each shard is fetched when first read."""
    local = open_dataset(folder)
    assert opened.manifest == local.manifest
    assert proxy.shards == []
    assert opened.read(0, 10).tolist() == local.read(0, 10).tolist()
    assert proxy.shards == names(0)
    monkeypatch.setattr(remote, "_PIECE", 1000)
    ours, theirs = (Samples(dataset, 16, seed=3) for dataset in (opened, local))
    positions = np.arange(3 * len(theirs))
    np.testing.assert_array_equal(ours.read(positions).tokens, theirs.read(positions).tokens)
    assert opened.document(77).position == local.document(77).position == 77
    assert opened.load_tokenizer().fingerprint == local.load_tokenizer().fingerprint
    pieces = {name: -(-(folder / name).stat().st_size // 1000) for name in names(*range(1, SHARDS))}
    assert Counter(proxy.shards) == {**pieces, "shard-00000.arrow": 1}


@pytest.mark.parametrize(
    ("faults", "attempts"),
    [
        (["500", "503", "500"], 4),
        (["429"], 2),
        (["cut", "cut"], 3),
        (["truncated"], 2),
        (["short"], 2),
        (["wrong", "wrong"], 3),
        (["slow"], 1),
        (["stalled"], 2),
        (["500", "truncated", "wrong", "cut"], 5),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_passes_is_tried_again(
    faults: list[str],
    attempts: int,
    folder: Path,
    filled: S3FileSystem,
    cache: Cache,
    proxy: FaultyProxy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if "stalled" in faults:
        monkeypatch.setattr(remote, "_SILENCE_SECONDS", 0.3)
    opened = open_dataset(URL, cache, QUICK)
    proxy.faults.extend(faults)
    with caplog.at_level(logging.WARNING, "bigtrain"):
        assert everything(opened) == everything(open_dataset(folder))
    assert Counter(proxy.shards) == Counter(names(*range(SHARDS)) + names(0) * (attempts - 1))
    again = faults.count("cut")  # a connection used before is asked once more by aiohttp, without a word
    assert attempts - 1 - again <= len(caplog.records) <= attempts - 1
    assert all("s3://data/train/shard-00000.arrow" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("fault", "attempts", "told"),
    [
        ("500", 4, r"cannot be read, 4 attempts failed, the last by .*; look whether the address is right"),
        ("cut", 4, "cannot be read, 4 attempts failed"),
        ("truncated", 4, "cannot be read, 4 attempts failed"),
        ("wrong", 3, "came 3 times with another checksum than dataset.json records.*bigtrain data verify s3://"),
        ("403", 1, "cannot be read: access is denied, look at the credentials"),
        ("404", 1, "cannot be read: it is not there"),
    ],
)
def test_what_does_not_pass_is_told_once(
    fault: str, attempts: int, told: str, opened: TokenDataset, cache: Cache, proxy: FaultyProxy
) -> None:
    proxy.always = fault
    with pytest.raises(DataError, match=rf"^s3://data/train/shard-00002\.arrow:? {told}"):
        opened.read(1000, 10)
    again = attempts if fault == "cut" else 0  # a connection used before is asked once more by aiohttp, without a word
    assert {*proxy.shards} == {*names(2)}
    assert attempts <= len(proxy.shards) <= attempts + again
    assert [path.name for path in cache.folder.rglob("*") if path.is_file()] == ["lock"]
    proxy.always = None
    assert len(opened.read(1000, 10)) == 10


def test_what_is_wrong_is_told_before_reading(bucket: S3FileSystem, cache: Cache, folder: Path) -> None:
    content = (folder / "shard-00003.arrow").read_bytes()
    bucket.pipe("data/train/shard-00003.arrow", content[:-1])
    with pytest.raises(DataError, match=r"^s3://data/train/shard-00003\.arrow: has \d+ bytes, dataset\.json says"):
        open_dataset(URL, cache, QUICK)
    bucket.rm("data/train/shard-00003.arrow")
    with pytest.raises(DataError, match=r"^s3://data/train/shard-00003\.arrow: shard cannot be read"):
        open_dataset(URL, cache, QUICK)
    with pytest.raises(DataError, match=r"^s3://data/none/dataset\.json cannot be read: it is not there"):
        open_dataset("s3://data/none", cache, QUICK)
    with pytest.raises(DataError, match=r"^s3://none/train/dataset\.json cannot be read: it is not there"):
        open_dataset("s3://none/train", cache, QUICK)
    bucket.pipe("data/train/dataset.json", b"{")
    with pytest.raises(DataError, match=r"^s3://data/train/dataset\.json: not JSON"):
        open_dataset(URL, cache, QUICK)


def test_a_dataset_that_changed_is_read_anew(
    bucket: S3FileSystem, cache: Cache, opened: TokenDataset, bpe: SentencePieceTokenizer, tmp_path: Path
) -> None:
    everything(opened)
    tokens = np.append(np.arange(3, 502), bpe.eos_id)
    write_dataset(tmp_path / "new", [Documents(tokens, np.array([500]), ["file"], [0], bytes=1)], bpe)
    for path in (tmp_path / "new").iterdir():
        bucket.pipe(f"data/train/{path.name}", path.read_bytes())
    assert everything(open_dataset(URL, cache, QUICK)) == tokens.tolist()


def reader(cache: Cache) -> "subprocess.Popen[str]":
    """A process that has the dataset open, and reads it when it gets a line."""
    command = [sys.executable, str(Path(__file__).with_name("read_all.py")), URL, str(cache.folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def test_processes_of_a_node_share_what_is_fetched(
    filled: S3FileSystem, cache: Cache, folder: Path, proxy: FaultyProxy
) -> None:
    proxy.always = "slow"  # so that they do meet
    readers = [reader(cache) for _ in range(2)]
    for process in readers:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    told = [process.communicate()[0] for process in readers]
    assert told == [f"{sum(everything(open_dataset(folder)))}\n"] * 2
    assert Counter(proxy.shards) == Counter(names(*range(SHARDS)))


def test_a_process_that_is_killed_blocks_nobody(
    opened: TokenDataset, cache: Cache, folder: Path, proxy: FaultyProxy
) -> None:
    """Neither where the next wants the same shard, nor where it wants another and finds what was left."""
    for wanted in (0, 1500):
        proxy.faults.append("stalled")
        process = reader(cache)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        proxy.asked.acquire()
        process.kill()
        process.communicate()
        assert len(list((cache.folder / "partial").iterdir())) == 1
        assert opened.read(wanted, 10).tolist() == open_dataset(folder).read(wanted, 10).tolist()
        assert list((cache.folder / "partial").iterdir()) == []
        while proxy.asked.acquire(blocking=False):
            pass
        shutil.rmtree(cache.folder / "files")


def test_the_cache_keeps_its_bound_and_readers_what_they_have(
    filled: S3FileSystem, tmp_path: Path, folder: Path, proxy: FaultyProxy
) -> None:
    size = max(path.stat().st_size for path in folder.glob("*.arrow"))
    cache = Cache(tmp_path / "small", max_bytes=3 * size)
    opened, local = open_dataset(URL, cache, QUICK), open_dataset(folder)
    views = []
    for number in range(SHARDS):
        views.append(opened.read(number * 500, 500))
        kept = sum(path.stat().st_size for path in cache.folder.rglob("*") if path.is_file())
        assert kept <= cache.max_bytes
    assert np.concatenate(views).tolist() == everything(local)
    assert proxy.shards == names(*range(SHARDS))

    again = open_dataset(URL, cache, QUICK)
    again.read(1500, 500)  # 3, 4 and 5 are there; 4 is now the one opened longest ago
    again.read(0, 500)
    again.read(1500, 500)
    again.read(2500, 500)
    assert proxy.shards == names(*range(SHARDS), 0)
    again.read(2000, 500)
    assert proxy.shards == names(*range(SHARDS), 0, 4)

    with pytest.raises(DataError, match=rf"^data\.cache_bytes \(9\) cannot hold one shard of {URL}.* has {size} bytes"):
        open_dataset(URL, Cache(tmp_path / "tiny", max_bytes=9), QUICK)


def test_a_copy_that_was_damaged_is_fetched_again(opened: TokenDataset, cache: Cache, folder: Path) -> None:
    """As after a power cut: a file of the right length and of zeros."""
    local = everything(open_dataset(folder))
    assert everything(opened) == local
    for path in (cache.folder / "files").iterdir():
        path.write_bytes(bytes(path.stat().st_size))
    assert everything(open_dataset(URL, cache, QUICK)) == local
    next((cache.folder / "files").iterdir()).write_bytes(b"")
    assert everything(open_dataset(URL, cache, QUICK)) == local


def test_fetching_ahead(opened: TokenDataset, cache: Cache, folder: Path, proxy: FaultyProxy) -> None:
    """In the order given, beside the reader; a new list takes the place of the old; at most half of the cache."""
    opened.prefetch([4, 2])
    for _ in range(2):
        proxy.asked.acquire()
    opened.read(2000, 10)
    opened.read(1000, 10)
    assert proxy.shards == names(4, 2)

    proxy.faults.append("stalled")
    opened.prefetch([0, 1, 3, 5])
    proxy.asked.acquire()
    opened.prefetch([4, 2, 5])
    proxy.release.set()
    for _ in range(2):
        proxy.asked.acquire()
    opened.read(0, 10)
    opened.read(2500, 10)
    assert proxy.shards == names(4, 2, 0, 0, 5)

    opened.close()
    assert [thread.name for thread in threading.enumerate() if thread.name == "prefetch"] == []
    assert len(opened.read(1500, 10)) == 10  # reading goes on without it


def test_fetching_ahead_leaves_room(filled: S3FileSystem, cache: Cache, folder: Path, proxy: FaultyProxy) -> None:
    size = max(path.stat().st_size for path in folder.glob("*.arrow"))
    opened = open_dataset(URL, Cache(cache.folder, max_bytes=5 * size), QUICK)
    opened.prefetch(iter(range(SHARDS)))
    for _ in range(2):
        proxy.asked.acquire()
    opened.close()
    assert proxy.shards == names(0, 1)


def test_what_cannot_be_fetched_ahead_is_told_to_the_reader(
    opened: TokenDataset, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.always = "404"
    opened.prefetch([3])
    proxy.asked.acquire()
    with pytest.raises(DataError, match=r"shard-00003\.arrow cannot be read: it is not there"):
        opened.read(1500, 10)
    opened.close()
    assert proxy.shards == names(3, 3)
    assert "fetching ahead stopped: s3://data/train/shard-00003.arrow" in caplog.text


def test_verify_behind_a_url(bucket: S3FileSystem, cache: Cache, folder: Path, proxy: FaultyProxy) -> None:
    """Every damage is named; what the way did is not held against the files; nothing is kept."""
    proxy.faults.extend(["500", "wrong"])
    told: list[tuple[int, int]] = []
    total = sum(path.stat().st_size for path in folder.glob("*.arrow"))
    assert verify(URL, cache, QUICK, lambda *progress: told.append(progress)) == open_dataset(folder).manifest
    assert len(told) == SHARDS
    assert told[-1] == (total, total)
    assert [path for path in cache.folder.rglob("*") if path.is_file()] == []

    content = (folder / "shard-00001.arrow").read_bytes()
    bucket.pipe("data/train/shard-00001.arrow", content[:100] + bytes([content[100] ^ 1]) + content[101:])
    bucket.rm("data/train/shard-00002.arrow")
    bucket.pipe("data/train/shard-00077.arrow", b"")
    bucket.pipe("data/train/tokenizer.model", b"x")
    with pytest.raises(DataError) as caught:
        verify(URL, cache, QUICK)
    first, *wrong = str(caught.value).splitlines()
    assert first == f"{URL}: 4 of its files are not as they should be"
    assert [line.split(":")[0].strip() for line in wrong] == [*names(1, 2, 77), "tokenizer.model"]
    for line, word in zip(wrong, ("damaged", "not there", "no such shard", "not the tokenizer"), strict=True):
        assert word in line


def bigtrain(*words: str, **options: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "bigtrain", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


def test_a_full_disk_ends_in_one_message(filled: S3FileSystem, proxy: FaultyProxy, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    result = bigtrain(
        "data", "verify", URL, "--cache-dir", str(tmp_path / "disk"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, -1)),
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("error:") == 1
    for word in (str(tmp_path / "disk"), "no room for what is streamed", "bytes are free there", "data.cache_dir"):
        assert word in result.stderr


def test_a_cache_without_room_or_right(opened: TokenDataset, cache: Cache, filled: S3FileSystem) -> None:
    program = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from bigtrain.data.cache import Cache\nfrom bigtrain.data.shards import open_dataset\n"
        "from bigtrain.errors import DataError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, -1))\n"
        f"try:\n    open_dataset({URL!r}, Cache(Path(sys.argv[1]))).read(0, 10)\n"
        "except DataError as error:\n    print(error)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, str(cache.folder)], capture_output=True, text=True, check=True
    ).stdout
    assert told.startswith(f"{cache.folder}: no room for what is streamed")
    assert list((cache.folder / "partial").iterdir()) == []

    shutil.rmtree(cache.folder)
    cache.folder.touch()
    with pytest.raises(DataError, match=rf"^{cache.folder}: the cache of what is streamed cannot be used"):
        opened.read(0, 10)


class Ranges(SimpleHTTPRequestHandler):
    """The standard server, that knows no ranges, silenced."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def http_server(folder: Path) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(folder.parent)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_names_the_end_of_a_document_comes_with_the_tokenizer(
    bucket: S3FileSystem, cache: Cache, tmp_path: Path
) -> None:
    """A `tokenizer.json` is read with the `tokenizer_config.json` beside it, or without where there is none."""
    words = {"<stop>": 0, "</s>": 1, "word": 2}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="word")).save(str(tmp_path / "tokenizer.json"))
    for end, config in ((1, None), (0, {"eos_token": "<stop>"})):
        if config is not None:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = HuggingFaceTokenizer(tmp_path / "tokenizer.json")
        documents = Documents(np.array([2, end]), np.array([2]), ["file"], [0], bytes=4)
        write_dataset(tmp_path / f"dataset{end}", [documents], tokenizer)
        for path in (tmp_path / f"dataset{end}").iterdir():
            bucket.pipe(f"data/train/{path.name}", path.read_bytes())
        assert open_dataset(URL, cache, QUICK).load_tokenizer().eos_id == tokenizer.eos_id == end


def test_over_http(http_server: int, folder: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a server that sends whole files, whatever piece is asked for."""
    monkeypatch.setattr(remote, "_PIECE", 1000)
    proxy = FaultyProxy(http_server)
    try:
        opened, local = open_dataset(f"{proxy.address}/train", cache, QUICK), open_dataset(folder)
        proxy.faults.extend(["500", "truncated", "wrong"])
        assert everything(opened) == everything(local)
        assert Counter(proxy.shards) == Counter(names(*range(SHARDS)) + names(0) * 3)
        assert opened.load_tokenizer().fingerprint == local.load_tokenizer().fingerprint
        verify(f"{proxy.address}/train", cache, QUICK)
        with pytest.raises(DataError, match=rf"^{proxy.address}/none/dataset\.json cannot be read: it is not there"):
            open_dataset(f"{proxy.address}/none", cache, QUICK)
    finally:
        proxy.close()


def test_nobody_there(cache: Cache) -> None:
    with pytest.raises(
        DataError, match=r"^http://127\.0\.0\.1:9/train/dataset\.json cannot be read, 2 attempts failed"
    ):
        open_dataset("http://127.0.0.1:9/train", cache, Retry(2, 0.001))


def test_a_file_url_is_the_folder(folder: Path) -> None:
    assert everything(open_dataset(f"file://{folder}")) == everything(open_dataset(folder))


def test_other_kinds_of_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only that what speaks them is found: no such server can be had here."""
    assert "HfFileSystem" in type(remote_place("hf://datasets/someone/something").fs).__name__  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"^s4://data/train: .*s4"):
        open_dataset("s4://data/train")
    for url, package in (("gs://data/train", "gcsfs"), ("https://host/train", "aiohttp"), ("s3://data/train", "s3fs")):
        program = (
            f"import sys\nsys.modules[{package!r}] = None\n"
            "from bigtrain.data.shards import open_dataset\nfrom bigtrain.errors import DataError\n"
            "assert not {'torch', 'fsspec', 'aiohttp'} & {n for n, m in sys.modules.items() if m}\n"
            f"try:\n    open_dataset({url!r})\nexcept DataError as error:\n    print(error)\n"
        )
        told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        assert told.startswith(f"{url} needs a package that is missing (")
        assert told.endswith("): pip install 'bigtrain[remote]'\n")
