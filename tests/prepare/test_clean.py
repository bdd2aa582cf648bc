"""Cleaning: real text with planted cases, each of which its own step meets, and no other."""

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml
import zstandard
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)

from bigtrain.prepare.clean import clean
from bigtrain.prepare.clean_load import load_recipe

ITEM = (
    "A farmer has seventeen sheep and all but nine run away through the broken gate; "
    "how many sheep does the farmer still have when the evening comes?"
)
SHORT_LINES = """We went to the sea.
It rained in the night.
He sold his old car.
That was not my plan.
Birds sing at dawn.
She likes black tea.
Of course they won.
Nobody saw the thief.
Our train was late.
I have three cousins.
Snow fell until noon.
Dogs bark with joy.
This soup needs salt.
Fresh bread smells good."""
TAKEN = {5, 9, 11, 13, 15}
"""Real texts that planted cases are made of."""
STEPS: list[dict[str, Any]] = [
    {"step": "repair_unicode"},
    {"step": "language", "languages": ["en"]},
    {"step": "gopher_repetition"},
    {"step": "gopher_quality", "min_doc_words": 30},
    {"step": "c4_quality", "min_num_sentences": 3},
    {"step": "fineweb_quality"},
    {"step": "exact_dedup"},
    {"step": "minhash_dedup"},
    {"step": "decontaminate", "benchmarks": ["BENCHMARK"]},
    {"step": "mask_pii"},
]


def real_texts() -> list[str]:
    """English prose that comes with Python: groups of paragraphs of its language reference."""
    topics: dict[str, str] = __import__("pydoc_data.topics", fromlist=["topics"]).topics
    texts = []
    for topic in sorted(topics):
        paragraphs = [" ".join(part.split()) for part in topics[topic].split("\n\n")]
        prose = [p for p in paragraphs if len(p.split()) > 14 and p.endswith(".") and not set(p) & set('{|>=*`_["')]
        texts += ["\n".join(prose[i : i + 3]) for i in range(0, len(prose) - 2, 3)]
    judged = [text for text in dict.fromkeys(texts) if GopherRepetitionFilter().filter(Document(text, "")) is True]
    assert 30 < len(judged) >= 0.9 * len(texts)
    return judged


def longest(real: list[str]) -> int:
    """The real text whose near duplicate is planted."""
    return max((i for i in range(len(real)) if i not in TAKEN), key=lambda i: len(real[i]))


def planted(real: list[str]) -> dict[str, tuple[str, str | None]]:
    """Name of a case -> its text, and the step that is to drop it."""
    words = real[longest(real)].split(" ")
    for place in (20, len(words) // 2):
        words[place] = "something"
    return {
        "copy": (real[5], "exact_dedup"),
        "nearly": (" ".join(words), "minhash_dedup"),
        "german": ("Die Leute gehen am Morgen in den Garten und lesen ein Buch. Danach kochen sie.", "language"),
        "chinese": ("今天天气很好，我们一起去公园散步，然后回家做饭。" * 3, "language"),
        "repeated": ("The offer is good and you have to see it with your friends.\n" * 20, "gopher_repetition"),
        "short": (
            "Somebody had to write the report before Monday, and so we agreed with some regret that our youngest "
            "colleague should do it while the others slept.",
            "gopher_quality",
        ),
        "lorem": (real[9] + "\nAnd then he wrote: lorem ipsum dolor sit amet.", "c4_quality"),
        "lines": (SHORT_LINES, "fineweb_quality"),
        "benchmark": (real[11] + "\nHere is a riddle that my uncle likes to tell. " + ITEM, "decontaminate"),
        "mojibake": (real[13] + " They met in the cafÃ© before the exhibition opened.", None),
        "address": (real[15] + " Write to joe.smith@corp.com, or look at 8.8.8.8 and at 192.168.0.1.", None),
    }


@pytest.fixture(scope="module")
def texts() -> dict[str, tuple[str, str | None]]:
    real = real_texts()
    # of those that cases are made of only the one with a copy: the others would be near duplicates
    kept = {f"real-{i}": (text, None) for i, text in enumerate(real) if i not in TAKEN - {5}}
    return {**kept, **planted(real)}


@pytest.fixture(scope="module")
def recipe(texts: dict[str, tuple[str, str | None]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of different kinds, with bad records, and the recipe."""
    folder = tmp_path_factory.mktemp("cleaning")
    rows = [{"text": text, "id": name, "url": f"u/{name}"} for name, (text, _) in texts.items()]
    (folder / "in").mkdir()
    lines = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows]
    with gzip.open(folder / "in/a.jsonl.gz", "wb") as file:
        file.writelines([*lines[0::3], b"{not json\n", b'{"id": "untitled"}\n'])
    frames = (b"".join(lines[1::3][:5]), b"".join([*lines[1::3][5:], b'{"text": "\xff"}\n']))
    (folder / "in/b.jsonl.zst").write_bytes(b"".join(map(zstandard.compress, frames)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[2::3]), folder / "in/c.parquet")
    (folder / "riddles.jsonl").write_text(json.dumps({"question": ITEM}) + '\n{"question": "And then?"}\n')
    steps = json.loads(json.dumps(STEPS).replace("BENCHMARK", str(folder / "riddles.jsonl")))
    tree = {"inputs": [str(folder / "in")], "output": str(folder / "out"), "keep_keys": ["url"], "examples": 1000}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**tree, "steps": steps}))
    return path


def shards(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((output / "documents").iterdir())}


def documents(output: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for part in shards(output).values() for line in decompressed(part).splitlines()]
    return {row["id"]: row for row in rows}


def decompressed(part: bytes) -> bytes:
    return zstandard.ZstdDecompressor().stream_reader(part).read()


def examples(output: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    return json.loads((output / "report.json").read_text())["examples"]


@pytest.fixture(scope="module")
def cleaned(recipe: Path) -> Path:
    return clean(load_recipe(recipe, ["workers=1"])).output


def bigtrain(*words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bigtrain", "data", "clean", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_each_planted_case_is_dropped_by_its_step_and_real_text_stays(
    cleaned: Path, texts: dict[str, tuple[str, str | None]]
) -> None:
    dropped = {
        example["id"]: step
        for step, reasons in examples(cleaned).items()
        for some in reasons.values()
        for example in some
        if step != "read"
    }
    wanted = {name: step for name, (_, step) in texts.items() if step}
    # which of two alike stays is the deduplication's choice
    for original, case in (("real-5", "copy"), (f"real-{longest(real_texts())}", "nearly")):
        if original in dropped:
            wanted[original] = wanted.pop(case)
    assert dropped == wanted
    assert documents(cleaned).keys() == texts.keys() - dropped.keys()


def test_text_is_mended_and_masked_and_otherwise_as_it_was(
    cleaned: Path, texts: dict[str, tuple[str, str | None]]
) -> None:
    found = documents(cleaned)
    assert found["mojibake"]["text"].endswith("in the café before the exhibition opened.")
    assert found["address"]["text"].endswith("Write to email@example.com, or look at 192.0.2.1 and at 192.168.0.1.")
    plain = [name for name in found if name.startswith("real")]
    assert len(plain) > 25
    assert [name for name in plain if found[name]["text"] != texts[name][0]] == []


def test_every_document_tells_where_it_is_from(cleaned: Path, texts: dict[str, tuple[str, str | None]]) -> None:
    names = list(texts)
    for name, row in documents(cleaned).items():
        place = names.index(name)
        file = ("in/a.jsonl.gz", "in/b.jsonl.zst", "in/c.parquet")[place % 3]
        assert (row["source"], row["record"], row["url"]) == (file, place // 3, f"u/{name}")


def test_the_counts_add_up_to_what_came_in_and_went_out(
    cleaned: Path, texts: dict[str, tuple[str, str | None]]
) -> None:
    counts = json.loads((cleaned / "cleaning.json").read_text())["counts"]
    assert [row["step"] for row in counts] == ["read", *(step["step"] for step in STEPS)]
    assert counts[0]["in"] == len(texts) + 3
    assert counts[0]["reasons"] == {"not JSON": 2, "no key text": 1}
    assert all(row["in"] == row["kept"] + row["dropped"] for row in counts)
    assert [row["kept"] for row in counts[:-1]] == [row["in"] for row in counts[1:]]
    assert counts[-1]["kept"] == len(documents(cleaned))
    for row in counts:
        shown = examples(cleaned).get(row["step"], {})
        assert row["dropped"] == sum(map(len, shown.values()))


def test_verdicts_are_those_of_datatrove_s_filters(cleaned: Path, texts: dict[str, tuple[str, str | None]]) -> None:
    """The chain of filters called one after another on each document."""
    filters = {
        "gopher_repetition": GopherRepetitionFilter(),
        "gopher_quality": GopherQualityFilter(min_doc_words=30),
        "c4_quality": C4QualityFilter(min_num_sentences=3),
        "fineweb_quality": FineWebQualityFilter(),
    }
    found = {
        (step, example["id"]): reason
        for step, reasons in examples(cleaned).items()
        for reason, some in reasons.items()
        for example in some
        if step in filters
    }
    told = {}
    for name, (text, step) in texts.items():
        document = Document(text, name)
        for kind, filter_ in filters.items():
            verdict = filter_.filter(document)
            if verdict is not True and step != "language":
                told[kind, name] = verdict[1]
                break
    assert found == told
    assert {kind for kind, _ in told} == set(filters)


def test_two_workers_write_the_same_even_after_a_kill(recipe: Path, cleaned: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = [str(recipe), f"output={output}", "workers=2"]
    begun = subprocess.Popen([sys.executable, "-m", "bigtrain", "data", "clean", *words], start_new_session=True)
    done = output / "tasks/logs/01-read/completions"
    while not done.exists() or not any(done.iterdir()):
        assert begun.poll() is None
        time.sleep(0.02)
    os.killpg(begun.pid, 9)
    begun.wait()
    assert not (output / "cleaning.json").exists()
    again = bigtrain(*words)
    assert again.returncode == 0, again.stderr
    assert shards(output) == shards(cleaned)
    assert (output / "report.json").read_bytes() == (cleaned / "report.json").read_bytes()
    assert json.loads((output / "cleaning.json").read_text())["fingerprint"] in (output / "report.html").read_text()


def test_another_recipe_in_the_same_folder_is_refused(recipe: Path, cleaned: Path) -> None:
    before = shards(cleaned)
    other = bigtrain(recipe, "steps.language.language_threshold=0.9")
    assert (other.returncode, other.stdout) == (2, "")
    assert "another recipe: it differs in steps.language.language_threshold" in other.stderr
    assert "Traceback" not in other.stderr
    assert shards(cleaned) == before


def test_the_page_shows_what_was_dropped(cleaned: Path) -> None:
    page = (cleaned / "report.html").read_text()
    for said in ("lorem_ipsum", "language de", "A farmer has seventeen sheep", "riddles: 1 of 2"):
        assert said in page
    assert "http" not in page.split("</style>")[0]


def test_the_ready_recipes_load() -> None:
    folder = Path(__file__).parents[2] / "configs/clean"
    names = sorted(path.name for path in folder.glob("*.yaml"))
    assert names == ["english-web.yaml", "tiny.yaml"]
    for name in names:
        load_recipe(folder / name)
