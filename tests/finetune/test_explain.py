"""Why a run says so: against captum and scikit-learn on `transformers`' models with the same weights, and as a user
has it."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from captum.attr import LayerIntegratedGradients
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from typer.testing import CliRunner

from bigtrain.cli import app
from bigtrain.errors import UserError
from bigtrain.finetune.explain import Explanation, explain
from bigtrain.finetune.saved import load_run, open_examples
from bigtrain.prepare.train_tokenizer import train_wordpiece

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
import plain
import test_finetune as heads

STEPS, NEAREST = 16, 4


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """What a world of one process leaves there is taken back."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


_made = heads.model.__wrapped__


@functools.cache
def model(architecture: str, task: str = "classification") -> Any:
    """That of fine-tuning's test, with weights so large that each word matters."""
    made = _made(architecture, task)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return made.eval()


@pytest.fixture(scope="module")
def runs(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Run folders of a classification of text pairs, with the weights of the model of `transformers`."""
    made = tmp_path_factory.mktemp("explain")
    heads.write_examples(made)
    (made / "gpt").mkdir()
    shutil.copy(tokenizer, made / "gpt" / "tokenizer.model")
    train_wordpiece([*heads.TEXTS, *heads.SECOND], made / "bert", 72)

    def run(architecture: str) -> Path:
        folder = made / f"run-{architecture}"
        if not folder.exists():
            config = heads.config(made, architecture, "classification", {"zero_stage": 3})
            folder.mkdir()
            shutil.copytree(made / architecture, folder / "tokenizer")
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(heads, "model", model)
                weights = heads.weights(architecture, "classification")
            plain.write_checkpoint(weights, config["model"], folder / "best" / "step-00000001")
        return folder

    return run


def inputs(architecture: str, run: Path) -> list[dict[str, Tensor]]:
    """Each example as `transformers` reads it."""
    pieces = heads.Pieces(architecture, run.parent)
    found = []
    for text, second in zip(heads.TEXTS, heads.SECOND, strict=True):
        first = pieces.of(text)[0]
        ids = torch.tensor([pieces.framed(first, pieces.of(second)[0])])
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if pieces.bert:
            given["token_type_ids"] = (torch.arange(ids.shape[1]) >= len(pieces.framed(first)))[None].long()
        found.append(given)
    return found


def by_captum(architecture: str, given: dict[str, Tensor], special: set[int], neutral: int) -> tuple[Any, ...]:
    """The predicted class, its probability, and what each token adds; and the difference that these should sum to."""
    whole = model(architecture)
    ids = given["input_ids"]
    rest = {name: value for name, value in given.items() if name != "input_ids"}
    baseline = torch.tensor([[i if i in special else neutral for i in ids[0].tolist()]])

    def logits(ids: Tensor) -> Tensor:
        return whole(ids, **{name: value.expand(len(ids), -1) for name, value in rest.items()}).logits

    with torch.no_grad():
        said, without = logits(ids)[0], logits(baseline)[0]
    best = int(said.argmax())
    integrated = LayerIntegratedGradients(logits, whole.get_input_embeddings())
    added = integrated.attribute(ids, baseline, target=best, n_steps=STEPS).sum(-1)[0].detach()
    return best, float(said.softmax(-1)[best]), added, float(said[best] - without[best])


def explained(run: Path, nearest: int = 0) -> list[Explanation]:
    config = load_run(run, ["parallel.zero_stage=0", "training.precision=fp32"])
    encoded = open_examples(config, Path(config.finetune.train or ""), run)
    return list(explain(config, run, encoded, label=None, steps=STEPS, nearest=nearest))


@pytest.mark.parametrize("architecture", ["gpt", "bert"])
def test_equals_captum_and_scikit_learn_on_transformers(architecture: str, runs: Callable[[str], Path]) -> None:
    run = runs(architecture)
    ours = explained(run, NEAREST)
    given = inputs(architecture, run)
    special, neutral = {2}, 2
    if architecture == "bert":
        pieces = heads.Pieces("bert", run.parent).fast
        names = ["[CLS]", "[SEP]", "[PAD]", "[MASK]"]
        special, neutral = {*pieces.convert_tokens_to_ids(names)}, pieces.convert_tokens_to_ids("[MASK]")
    for one, row in zip(ours, given, strict=True):
        best, share, added, difference = by_captum(architecture, row, special, neutral)
        values = torch.tensor([value for text in one.texts for _, _, value in text.pieces])
        words = [place for place, i in enumerate(row["input_ids"][0].tolist()) if i not in special]
        assert (one.predicted, one.explained) == ("abc"[best], "abc"[best])
        assert one.scores["abc"[best]] == pytest.approx(share, rel=1e-5)
        torch.testing.assert_close(values.float(), added[words], rtol=1e-3, atol=1e-6)
        assert float(added.abs().max()) > 0.01
        assert one.output - one.baseline == pytest.approx(difference, rel=1e-4, abs=1e-5)
        assert float(values.sum()) == pytest.approx(difference + one.gap, abs=1e-5)
        assert abs(one.gap) < 0.02 * abs(difference) + 1e-3

    whole = model(architecture)
    with torch.no_grad():
        if architecture == "bert":
            pooled = [whole.bert(**row).pooler_output[0] for row in given]
        else:
            pooled = [whole.model(**row).last_hidden_state[0, -1] for row in given]
    points = torch.stack(pooled).numpy()
    distances, places = NearestNeighbors(n_neighbors=NEAREST, metric="cosine").fit(points).kneighbors(points)
    for one, near, order in zip(ours, distances, places, strict=True):
        assert [other.id for other in one.nearest] == [f"row {place + 1}" for place in order]
        assert [other.label for other in one.nearest] == [heads.CLASSES[place] for place in order]
        np.testing.assert_allclose([1 - other.similarity for other in one.nearest], near, atol=1e-5)


def test_representations_are_computed_once(runs: Callable[[str], Path]) -> None:
    """A file of the checkpoint and the examples; of others it is made anew, and the old one goes."""
    run = runs("bert")
    before = explained(run, NEAREST)
    (kept,) = (run / "evaluation").glob("representations-*.npy")
    np.save(kept, np.roll(np.load(kept), 1, axis=0))
    assert explained(run, 1)[3].nearest[0].id == "row 5", "what is there is read: that of row 4 stands one later"
    marker = run / "best" / "step-00000001" / "complete.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "tokens": 1}))
    assert explained(run, NEAREST) == before
    (anew,) = (run / "evaluation").glob("representations-*.npy")
    assert anew != kept


WORDS = ["self", "value", "return", "name", "json", "loop", "event", "wait"]


@pytest.fixture(scope="module")
def planted(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned classes which one word tells, wherever it stands."""
    from bigtrain.config import load_config
    from bigtrain.finetune.finetune import finetune

    made = tmp_path_factory.mktemp("planted")
    random = np.random.default_rng(0)
    lines = []
    for i in range(96):
        words = [*random.choice(WORDS, size=7)]
        label = ("class", "import")[i % 2]
        words.insert(int(random.integers(8)), label)
        lines.append(json.dumps({"text": " ".join(words), "label": label}) + "\n")
    (made / "train.jsonl").write_text("".join(lines))
    config = {
        "model": {
            "vocab_size": 512,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        },
        "tokenizer": {"path": str(tokenizer)},
        "finetune": {"task": "classification", "train": str(made / "train.jsonl")},
        "optimizer": {"lr": 5e-3},
        "schedule": {"name": "constant"},
        "training": {
            "output_dir": str(made / "run"),
            "steps": 40,
            "global_batch_size": 16,
            "micro_batch_size": 16,
            "sequence_length": 24,
            "precision": "fp32",
        },
        "checkpoint": {"interval": 0},
        "logging": {"wandb": "disabled"},
    }
    (made / "config.yaml").write_text(yaml.safe_dump(config))
    before = dict(os.environ)
    assert finetune(load_config(made / "config.yaml")) == 0
    os.environ.clear()
    os.environ.update(before)
    return made / "run"


def test_the_word_that_tells_the_class_is_named_first(planted: Path, tmp_path: Path) -> None:
    """On the terminal, coloured and not, and on a page that needs nothing beside it."""
    table = tmp_path / "some.csv"
    table.write_text("text\nname loop self class event wait\nvalue import return json <b>&</b>\n" + "self value " * 20)
    command = [sys.executable, "-m", "bigtrain", "explain", planted, "--file", table, "--nearest", "2"]
    options: Any = {"capture_output": True, "text": True, "timeout": 120, "check": False}
    colors = {"FORCE_COLOR": "1", "COLORTERM": "truecolor"}
    done = subprocess.run([*command, "--most", "2"], env={**os.environ, **colors}, **options)
    assert done.returncode == 0, done.stderr
    shown = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    for number, word in ((1, "class"), (2, "import")):
        assert f"row {number}: {word} ({word} 0." in shown
        assert re.findall(r"^for it: (\w+) \+", shown, re.M)[number - 1] == word
    bluest = re.findall(r"\x1b\[30;48;2;99;147;194m([^\x1b]+)\x1b", done.stdout)
    assert [piece.strip() in word for piece, word in zip(bluest, ("class", "import"), strict=True)] == [True, True]
    page = (planted / "evaluation" / "explanation.html").read_text()
    assert re.findall(r'<span style="background: rgb\(99, 147, 194\)">([^<]+)</span>', page) == bluest
    assert "<b>" not in page
    assert "http" not in page
    assert page.count('class="nearest"') == 2

    plain_text = CliRunner().invoke(app, ["explain", str(planted), " ".join(WORDS * 4), "--nearest", "0"])
    assert plain_text.exception is None
    assert "\x1b" not in plain_text.stdout
    assert "1 of 1 examples are longer than training.sequence_length (24) and were cut" in plain_text.stdout
    unread = re.findall(
        r'title="not read: the text was cut">([^<]*)<', (planted / "evaluation/explanation.html").read_text()
    )
    assert unread[0].endswith("event wait")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["RUN", " "], "the text is empty: there is nothing to explain"),
        (["RUN"], "give one text to explain"),
        (["RUN", "x", "--file", "x.csv"], "give one text to explain"),
        (["RUN", "x", "--pair", "y"], "judges one text alone: leave --pair out"),
        (["RUN", "x", "--label", "def"], "--label def is no class of .*; it has class, import"),
        (["RUN", "--file", "none.csv"], "none.csv: no such file"),
        (["RUN", "x", "--output", "none/page.html"], "--output none/page.html cannot be written: .*none is no folder"),
        (["EMPTY", "x"], "is not a run's folder: it has no config.yaml"),
        (["TAGS", "x"], "is of finetune.task=tagging; what is explained is classification or regression"),
        (["UNSAVED", "x"], "no complete checkpoint"),
        (["MOVED", "x"], "finetune.train: .*: no such file; with --nearest 0"),
    ],
)
def test_what_cannot_be_explained(planted: Path, tmp_path: Path, words: list[str], match: str) -> None:
    folders = {name: tmp_path / name for name in ("EMPTY", "TAGS", "UNSAVED", "MOVED")}
    for folder in folders.values():
        folder.mkdir()
    config = yaml.safe_load((planted / "config.yaml").read_text())
    config["training"]["output_dir"] = str(folders["UNSAVED"])
    (folders["UNSAVED"] / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.copytree(planted, folders["MOVED"], dirs_exist_ok=True, symlinks=True)
    config["finetune"]["train"] = str(tmp_path / "gone.jsonl")
    (folders["MOVED"] / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.copytree(planted, folders["TAGS"], dirs_exist_ok=True, symlinks=True)
    config["finetune"]["task"] = "tagging"
    (folders["TAGS"] / "config.yaml").write_text(yaml.safe_dump(config))
    given = {"RUN": planted, **folders}
    done = CliRunner().invoke(app, ["explain", *(str(given.get(word, word)) for word in words)])
    assert isinstance(done.exception, UserError)
    assert re.search(match, str(done.exception)), done.exception
