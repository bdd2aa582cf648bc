"""The compressors' figures on the files that were prepared."""

import lzma
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from bigtrain.data.shards import open_dataset
from bigtrain.errors import DataError
from bigtrain.prepare.prepare import prepare
from bigtrain.prepare.train_tokenizer import train_sentencepiece
from bigtrain.report.build import report
from bigtrain.report.compression import compression

LIBRARY = Path(sysconfig.get_paths()["stdlib"])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for name in ("argparse", "ast", "heapq", "csv", "this", "bisect"):
        shutil.copy(LIBRARY / f"{name}.py", folder)
    return folder


@pytest.fixture(scope="module")
def dataset(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    texts = [file.read_text(encoding="utf-8") for file in corpus.iterdir()]
    tokenizer = train_sentencepiece(texts, folder / "tokenizer.model", 400)
    prepare([corpus], folder / "data", tokenizer, workers=1)
    return folder / "data" / "train"


def test_bits_per_byte_are_those_of_the_files_as_they_were(corpus: Path, dataset: Path) -> None:
    opened = open_dataset(dataset)
    order = [Path(opened.document(index).source).name for index in range(opened.documents)]
    text = b"".join((corpus / name).read_bytes() for name in order)
    zstd = pa.BufferOutputStream()
    with pa.CompressedOutputStream(zstd, "zstd") as stream:  # at its default level
        stream.write(text)
    found = compression(dataset)
    assert found["xz -9"] == 8 * len(lzma.compress(text, preset=9)) / len(text)
    assert found["zstd -19"] == pytest.approx(found["xz -9"], rel=0.05)
    assert found["zstd -19"] < 0.97 * 8 * zstd.getvalue().size / len(text)


def test_a_report_shows_them_beside_the_models(dataset: Path, make_run: Callable[..., Path]) -> None:
    made = report(make_run(validation=dataset))
    found = compression(dataset)
    assert made.summary.compressors == found
    assert f"{found['xz -9']:.3f}" in made.page.read_text()


def test_a_dataset_that_is_gone_is_left_out_and_a_damaged_one_is_told(
    dataset: Path, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_run(validation=tmp_path / "held-out")
    assert report(run).summary.compressors == {}
    shutil.copytree(dataset, tmp_path / "held-out")
    next((tmp_path / "held-out").glob("*.arrow")).unlink()
    with pytest.raises(DataError, match="shard"):
        report(run)
