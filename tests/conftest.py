"""What several rooms' tests share: a tokenizer and a dataset of real text, made once a session by the real code."""

import os
import sysconfig
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # 2 cores, often several processes

settings.register_profile("bigtrain", deadline=None)
settings.load_profile("bigtrain")


@pytest.fixture(scope="session")
def corpus() -> list[Path]:
    """Some of Python's own library, about half a megabyte."""
    library = Path(sysconfig.get_paths()["stdlib"])
    return [library / name for name in ("asyncio", "json", "email", "typing.py", "argparse.py", "datetime.py")]


@pytest.fixture(scope="session")
def tokenizer(corpus: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model of 512 pieces."""
    from bigtrain.data.text import read_documents
    from bigtrain.data.tokenizer import train_sentencepiece

    output = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train_sentencepiece(read_documents(corpus, pattern="*.py", max_bytes=500_000), output, 512)


@pytest.fixture(scope="session")
def dataset(corpus: list[Path], tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the datasets `train` and `validation`."""
    from bigtrain.data.prepare import prepare

    output = tmp_path_factory.mktemp("dataset") / "data"
    prepare(corpus, output, tokenizer, pattern="*.py", validation_fraction=0.1, workers=1)
    return output
