"""What a recipe may say, what files it may meet, and what Slurm is told."""

import gzip
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import fasttext
import pyarrow
import pytest
import yaml
import zstandard
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    LanguageFilter,
)
from datatrove.pipeline.formatters import FTFYFormatter, PIIFormatter

from bigtrain.config.reference import options
from bigtrain.errors import ConfigError, DataError
from bigtrain.prepare.clean import clean
from bigtrain.prepare.clean_load import fingerprint, load_recipe
from bigtrain.prepare.clean_recipe import STEPS, Executor, Recipe
from bigtrain.prepare.clean_steps import KeepLanguages


def written(folder: Path, **tree: Any) -> Path:
    path = folder / "recipe.yaml"
    given = {"inputs": [str(folder / "in")], "output": str(folder / "out"), "steps": [{"step": "repair_unicode"}]}
    path.write_text(yaml.safe_dump({**given, **tree}))
    return path


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"worker": 2}, "unknown key worker; did you mean workers?"),
        ({"tasks": "4"}, "tasks = '4': it takes a whole number above 0"),
        ({"steps": [{"step": "gopher_qualty"}]}, "steps[0]: no step 'gopher_qualty'; did you mean gopher_quality?"),
        ({"steps": [{"language": {}}]}, "steps[0] is no step: write `- step: KIND`"),
        ({"steps": ["exact_dedup"]}, "steps[0] is no step: write `- step: KIND`"),
        ({"steps": []}, "steps = []: it takes a list"),
        ({"steps": [{"step": "language"}]}, "steps[0] (language): languages is missing"),
        (
            {"steps": [{"step": "minhash_dedup", "n_gram": 5}]},
            "steps[0] (minhash_dedup): unknown key n_gram; did you mean n_grams?",
        ),
        (
            {"steps": [{"step": "gopher_repetition", "top_n_grams": {2: 3.0}}]},
            "steps[0] (gopher_repetition): top_n_grams.2 = 3.0: ",
        ),
        ({"steps": [{"step": "mask_pii"}] * 2}, "steps has mask_pii 2 times"),
        ({"executor": {"kind": "slurm"}}, "executor.kind = slurm needs executor.partition and executor.time"),
        ({"executor": {"node": 3}}, "executor: unknown key node"),
    ],
)
def test_a_wrong_recipe_is_told_by_its_key(tmp_path: Path, tree: dict[str, Any], said: str) -> None:
    path = written(tmp_path, **tree)
    with pytest.raises(ConfigError, match=re.escape(f"{path}: ".replace(f"{Path.cwd()}/", "") + said)):
        load_recipe(path)


def test_the_command_ends_with_2_and_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bigtrain", "data", "clean", str(written(tmp_path)), "steps.language.model=x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "the recipe has no step language; it has repair_unicode" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("step", "original", "ours"),
    [
        ("repair_unicode", FTFYFormatter, set()),
        ("language", LanguageFilter, {"model", "languages"}),
        ("gopher_quality", GopherQualityFilter, set()),
        ("gopher_repetition", GopherRepetitionFilter, set()),
        ("c4_quality", C4QualityFilter, set()),
        ("fineweb_quality", FineWebQualityFilter, set()),
        ("minhash_dedup", MinhashConfig, set()),
        ("mask_pii", PIIFormatter, {"ip_replacement"}),
    ],
)
def test_defaults_are_datatrove_s(step: str, original: type, ours: set[str]) -> None:
    theirs = inspect.signature(original).parameters
    for name, field in STEPS[step].model_fields.items():
        if name in {"step", *ours}:
            continue
        default = field.default
        pairs = tuple(default.items()) if isinstance(default, dict) else default
        assert (tuple(pairs) if isinstance(pairs, list) else pairs) == theirs[name].default, name


def test_the_guide_tells_every_option_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs/cleaning.md").read_text(encoding="utf-8")
    for section in (Recipe, Executor, *STEPS.values()):
        for option in options(section):
            if option.key != "step" and not option.key.startswith("executor."):
                default = "**required**" if option.default is None else f"`{option.default}`"
                assert f"| `{option.key}` | {default} | {option.description} |" in page


def test_damaged_and_empty_inputs_are_counted_and_shown(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    line = json.dumps({"text": "A line of text. " * 40}).encode() + b"\n"
    cut = zstandard.compress(b"".join(line.replace(b"text.", b"%d" % i) for i in range(9999)))
    (tmp_path / "in/cut.jsonl.zst").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "in/cut.jsonl.gz").write_bytes(gzip.compress(line)[:-9])
    (tmp_path / "in/not.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "in/empty.jsonl").write_bytes(b"")
    (tmp_path / "in/latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "in/odd.jsonl").write_bytes(b'[1]\n{"text": 3}\n{"text": " "}\n{"text": "good"}\n')
    table = pyarrow.table({"text": ["one", None, "three"]})
    for name, new in (("a", pyarrow.ipc.new_file), ("b", pyarrow.ipc.new_stream)):
        with new(str(tmp_path / f"in/{name}.arrow"), table.schema) as file:
            file.write_table(table)
    done = clean(load_recipe(written(tmp_path), ["workers=1"]))
    assert done.counts is not None
    reasons = done.counts[0]["reasons"]
    assert reasons == {"damaged file": 3, "empty": 3, "not JSON": 1, "no string": 1, "not UTF-8": 1}
    rows = []
    for part in sorted((done.output / "documents").iterdir()):
        rows += zstandard.ZstdDecompressor().stream_reader(part.read_bytes()).read().splitlines()
    found = [json.loads(row) for row in rows]
    assert ("in/odd.jsonl", 3, "good") in [(row["source"], row["record"], row["text"]) for row in found]
    arrows = [(row["source"], row["record"]) for row in found if row["source"].endswith("arrow")]
    assert sorted(arrows) == [(f"in/{name}.arrow", record) for name in "ab" for record in (0, 2)]


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"inputs": ["nowhere"]}, "nowhere: no such file or folder"),
        ({"pattern": "*.xml"}, "matches '*.xml'"),
        ({"steps": [{"step": "decontaminate", "benchmarks": ["none.jsonl"]}]}, "none.jsonl: cannot be read"),
        ({"steps": [{"step": "decontaminate", "benchmarks": ["BAD"]}]}, "bad.jsonl, line 2: not JSON"),
    ],
)
def test_missing_files_are_told_and_nothing_is_left(tmp_path: Path, tree: dict[str, Any], said: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text("text")
    (tmp_path / "bad.jsonl").write_text('{"q": "a"}\n{\n')
    tree = json.loads(json.dumps(tree).replace("BAD", str(tmp_path / "bad.jsonl")))
    with pytest.raises(DataError, match=re.escape(said)):
        clean(load_recipe(written(tmp_path, **tree)))
    assert not (tmp_path / "out").exists()


def test_the_fingerprint_changes_with_what_changes_the_result(tmp_path: Path) -> None:
    bench = tmp_path / "bench.txt"
    bench.write_text("one")
    path = written(tmp_path, steps=[{"step": "decontaminate", "benchmarks": [str(bench)]}])
    first = fingerprint(load_recipe(path))
    assert fingerprint(load_recipe(path, ["workers=7", "output=elsewhere", "examples=1"])) == first
    assert fingerprint(load_recipe(path, ["steps.decontaminate.n_grams=8"])) != first
    bench.write_text("two")
    assert fingerprint(load_recipe(path)) != first


def test_a_language_model_of_the_user_s_judges(tmp_path: Path) -> None:
    """A tiny fastText model, trained here, in the way that lid.176 was."""
    sentences = {
        "en": ["the house is on the hill", "we go to the market and buy bread", "this is what they said"],
        "de": ["das haus steht auf dem berg", "wir gehen zum markt und kaufen brot", "das ist was sie sagten"],
    }
    lines = [f"__label__{language} {text}\n" for language, texts in sentences.items() for text in texts]
    (tmp_path / "train").write_text("".join(lines * 30))
    # Each of its threads fills a tenth of the weights, and one the rest: with fewer than 11 this build of fastText
    # trains on what the memory held before, which is NaN at times.
    settings = {"dim": 8, "epoch": 60, "minn": 2, "maxn": 4, "thread": 11, "verbose": 0}
    trained = fasttext.train_supervised(str(tmp_path / "train"), **settings)
    trained.save_model(str(tmp_path / "lid.bin"))
    keep = KeepLanguages(["en"], 0.65, str(tmp_path / "lid.bin"), None)
    assert keep.filter(Document("we go to the house", "a")) is True
    assert keep.filter(Document("wir gehen zum haus", "b")) == (False, "language de")
    assert KeepLanguages(["en"], 1.1, str(tmp_path / "lid.bin"), None).filter(Document("we go to the house", "c")) == (
        False,
        "language en, unsure",
    )


SBATCH = """#!/bin/sh
n=$(($(cat "$JOBS/count" 2>/dev/null || echo 100) + 1))
echo $n > "$JOBS/count"
for script; do :; done
cp "$script" "$JOBS/$n.sh"
echo "$@" > "$JOBS/$n.args"
echo "Submitted batch job $n"
"""


def test_slurm_gets_an_array_for_each_stage_which_waits_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for name in "abc":
        (tmp_path / f"in/{name}.txt").write_text(name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sbatch").write_text(SBATCH)
    (tmp_path / "bin/sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("JOBS", str(tmp_path))
    site = {
        "kind": "slurm",
        "partition": "cpu",
        "time": "1:00:00",
        "mem_per_cpu_gb": 3,
        "sbatch_args": {"account": "me"},
    }
    done = clean(load_recipe(written(tmp_path, executor=site, steps=[{"step": "exact_dedup"}], workers=2)))
    assert done.counts is None
    scripts = {job: (tmp_path / f"{job}.sh").read_text() for job in done.jobs}
    names = [re.findall("--job-name=(.*)", script)[0] for script in scripts.values()]
    assert names == ["clean-read", "clean-exact_dedup-find", "clean-exact_dedup", "clean-report"]
    arrays = [re.findall("--array=(.*)", script)[0] for script in scripts.values()]
    assert arrays == ["0-2%2", "0-0%2", "0-2%2", "0-0%2"]
    for script in scripts.values():
        for option in ("partition=cpu", "time=1:00:00", "mem-per-cpu=3G", "account=me", "cpus-per-task=1"):
            assert f"#SBATCH --{option}\n" in script
        assert f'export PATH="{Path(sys.executable).parent}:$PATH"' in script
        assert "launch_pickled_pipeline" in script
    waits = [re.findall(r"--dependency=afterok:(\d+)", (tmp_path / f"{job}.args").read_text()) for job in done.jobs]
    assert waits == [[], *([job] for job in done.jobs[:-1])]
