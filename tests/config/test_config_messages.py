"""What a user reads after a slip: the key, the value, the place, and what would be right."""

from pathlib import Path

import pytest

from bigtrain.config import load_config, parse_config
from bigtrain.errors import EXIT_USER_ERROR, ConfigError, UserError


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_a_config_error_is_the_users() -> None:
    assert issubclass(ConfigError, UserError)
    assert EXIT_USER_ERROR == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        # a misspelt key, a misspelt section, a key of another section, a key without its section
        ("parallel.tenser=2", "command line: unknown key parallel.tenser; did you mean parallel.tensor?"),
        ("paralel.tensor=2", "command line: unknown key paralel; did you mean parallel?"),
        ("data.steps=2", "command line: unknown key data.steps; did you mean training.steps?"),
        ("tensor=2", "command line: unknown key tensor; did you mean parallel.tensor?"),
        (
            "gradient_clipping.x=2",
            "command line: unknown key gradient_clipping; a configuration has model, tokenizer, ",
        ),
        ("model.rms_norm_eps=2", "command line: unknown key model.rms_norm_eps; did you mean model.norm_eps?"),
        (
            "training.batch_size=2",
            "command line: unknown key training.batch_size; "
            "did you mean training.global_batch_size or training.micro_batch_size?",
        ),
        ("model.stepz=2", "command line: unknown key model.stepz; did you mean training.steps?"),
        (
            "parallel.zz=2",
            "command line: unknown key parallel.zz; parallel has tensor, pipeline, virtual_pipeline,",
        ),
        # a wrong type
        ("parallel.tensor=two", "command line: parallel.tensor = 'two': it takes a whole number above 0"),
        ("parallel.tensor='2'", "command line: parallel.tensor = '2': it takes a whole number above 0"),
        ("parallel.tensor=true", "command line: parallel.tensor = true: it takes a whole number above 0"),
        ("parallel.tensor=2.5", "command line: parallel.tensor = 2.5: it takes a whole number above 0"),
        ("parallel.tensor=", "command line: parallel.tensor = null: it takes a whole number above 0"),
        ("parallel.tensor=[2]", "command line: parallel.tensor = [2]: it takes a whole number above 0"),
        ("parallel.sequence=1", "command line: parallel.sequence = 1: it takes true or false"),
        ("parallel.sequence=ture", "command line: parallel.sequence = 'ture': it takes true or false"),
        ("training.seed=010", "command line: training.seed = '010': it takes a whole number at least 0"),
        ("model.head_dim=x", "command line: model.head_dim = 'x': it takes a whole number above 0 or null"),
        ("data.train=''", "command line: data.train = '': it takes non-empty text"),
        (
            "logging.run_name=17",
            "command line: logging.run_name = 17: it takes non-empty text or null; "
            "as YAML reads it, '17' in quotes is text",
        ),
        # a section that may be left out
        (
            "model.rope_scaling=3",
            "command line: model.rope_scaling = 3: model.rope_scaling is a section; give its keys, such as "
            "model.rope_scaling.rope_type",
        ),
        (
            "model.rope_scaling={rope_type: yarn, fakt: 2}",
            "command line: unknown key model.rope_scaling.fakt; did you mean model.rope_scaling.factor?",
        ),
        # a value out of range
        ("optimizer.lr=-1", "command line: optimizer.lr = -1: it takes a number above 0"),
        ("optimizer.lr=.inf", "command line: optimizer.lr = Infinity: it takes a finite number"),
        ("optimizer.weight_decay=.nan", "command line: optimizer.weight_decay = NaN: it takes a finite number"),
        ("model.hidden_dropout=1", "command line: model.hidden_dropout = 1: it takes a number at least 0 and below 1"),
        ("parallel.zero_stage=4", "command line: parallel.zero_stage = 4: it takes 0, 1, 2 or 3"),
        (
            "schedule.name=cosin",
            "command line: schedule.name = 'cosin': it takes cosine, linear, constant or wsd; did you mean cosine?",
        ),
        # lists
        ("optimizer.betas=[0.9]", "command line: optimizer.betas = [0.9]: it takes a list of 2, each a number at"),
        ("optimizer.betas=[0.9, 0.9, 0.9]", "command line: optimizer.betas = [0.9, 0.9, 0.9]: it takes a list of 2"),
        ("optimizer.betas=[2, x]", 'command line: optimizer.betas = [2, "x"]: it takes a list of 2'),
        ("optimizer.betas.0=0.9", "command line: optimizer.betas is a value, not a section: it takes a list of 2"),
        # sections
        ("model=3", "command line: model = 3: model is a section; give its keys, such as model.vocab_size"),
        ("model=", "command line: model = null: model is a section"),
        ("model.hidden_size.x=3", "command line: model.hidden_size is a value, not a section: it takes a whole number"),
        # the form of an override
        (
            "parallel.tensor",
            "override 'parallel.tensor' is not of the form section.key=value, such as parallel.tensor=2",
        ),
        ("=2", "override '=2' is not of the form"),
        ("parallel..tensor=2", "override 'parallel..tensor=2' is not of the form"),
        ("parallel.tensor =2", "override 'parallel.tensor =2' is not of the form"),
        ("extends=other.yaml", "override 'extends=other.yaml': extends is said in a file, at its top"),
        ("data.train=[a", "override 'data.train=[a', line 1, column 3: expected ',' or ']'"),
        ("data={train: a, train: b}", "override 'data={train: a, train: b}', line 1, column 12: train is given twice"),
    ],
)
def test_override(sound: Path, override: str, expected: str) -> None:
    told = message(sound, override)
    assert told.startswith(expected)
    assert "\n" not in told


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 2]", "bad.yaml: a configuration holds sections such as `model:`, not a list"),
        ("17", "bad.yaml: a configuration holds sections such as `model:`, not a single value"),
        ("model:\n\tx: 1", "bad.yaml, line 2, column 1: found character '\\t' that cannot start any token (YAML is"),
        ("model: {a: 1\n", "bad.yaml, line 2, column 1: expected ',' or '}'"),
        ("a: 1\n---\nb: 2", "bad.yaml, line 2, column 1: but found another document"),
        ("a: \x01", "bad.yaml is not YAML: unacceptable character #x0001"),
        ("model: !!python/name:os.system", "bad.yaml, line 1, column 8: could not determine a constructor"),
        ("? [a]\n: 3", "bad.yaml, line 1, column 3: found unhashable key"),
        ("parallel:\n  tensor: 1\n  tensor: 2", "bad.yaml, line 3, column 3: tensor is given twice, first in line 2"),
        ("model: {}\ndata: {}\nmodel: {}", "bad.yaml, line 3, column 1: model is given twice, first in line 1"),
        ("extends: 3", "bad.yaml: extends takes a file name or a list of file names, not 3"),
        (
            "extends: [sound.yaml, 3]",
            "bad.yaml: extends takes a file name or a list of file names, not ['sound.yaml', 3]",
        ),
        ("extends: sound.yaml\nmodel: 3", "bad.yaml: model = 3: model is a section"),
        (
            "extends: sound.yaml\nparallel.tensor: 2",
            "bad.yaml: unknown key parallel.tensor; dots are for the command line: write `tensor:` indented below",
        ),
        ("extends: sound.yaml\nmodel: {extends: x}", "bad.yaml: unknown key model.extends; extends stands at the top"),
        ("extends: sound.yaml\n1: 2", "bad.yaml: 1 is not a name: a key is text"),
        ("extends: sound.yaml\nmodel: {on: 2}", "bad.yaml: model.1 is not a name: a key is text"),
    ],
)
def test_file(sound: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str) -> None:
    monkeypatch.chdir(sound.parent)  # files are named as seen from where the user stands
    Path("bad.yaml").write_text(text)
    assert message(Path("bad.yaml")).startswith(expected)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "it is not UTF-8 text"),
    ],
)
def test_unreadable_file(tmp_path: Path, make: object, reason: str) -> None:
    path = tmp_path / "absent.yaml"
    make(path)  # type: ignore[operator]
    assert message(path) == f"cannot read the configuration {path}: {reason}"


def test_a_near_file_name_is_offered(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sound.parent)
    assert message(Path("sond.yaml")).endswith("No such file or directory; did you mean sound.yaml?")


def test_missing_keys_name_the_file_the_section_and_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("part.yaml").write_text("model: {vocab_size: 9, hidden_size: 8, num_hidden_layers: 1}\ndata: {train: x}\n")
    assert message(Path("part.yaml"), "parallel.tensor=2").splitlines() == [
        "part.yaml: model.num_attention_heads is missing (a whole number above 0): Query heads.",
        "part.yaml: the section training is missing; "
        "it needs at least output_dir, steps, global_batch_size, sequence_length",
    ]


def test_all_mistakes_are_told_at_once_each_with_who_said_it(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sound.parent)
    Path("base.yaml").write_text("extends: sound.yaml\noptimizer: {lr: fast, eps: slow}\n")
    Path("run.yaml").write_text("extends: base.yaml\noptimizer: {lr: quick}\nfoo: 1\n")
    assert message(Path("run.yaml"), "training.steps=no").splitlines() == [
        "run.yaml: optimizer.lr = 'quick': it takes a number above 0",
        "base.yaml: optimizer.eps = 'slow': it takes a number above 0",
        "command line: training.steps = false: it takes a whole number above 0",
        "run.yaml: unknown key foo; a configuration has model, tokenizer, data, parallel, optimizer, schedule, "
        "training, checkpoint, logging, launch",
    ]


def test_a_long_value_is_cut(sound: Path) -> None:
    told = message(sound, f"parallel.tensor={'x' * 500}")
    assert len(told) < 180
    assert "..." in told


def test_without_a_file_no_source_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"model": {"hidden_size": "wide"}})
    assert "model.hidden_size = 'wide': it takes a whole number above 0" in str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.sources.mail.weight=heavy", "data.sources.mail.weight = 'heavy': it takes a number above 0 or null"),
        ("data.sources.mail.wieght=3", "unknown key data.sources.mail.wieght; did you mean data.sources.mail.weight?"),
        ("data.sources.mail.weight=3.0", "data.sources.mail.path is missing (non-empty text)"),
        ("data.sources=[a]", 'data.sources = ["a"]: it takes names, each with a section with path, weight, tokens'),
        ("data.stages=[{stp: 5}]", "unknown key data.stages.0.stp; did you mean data.stages.0.step?"),
        ("data.stages=[{step: 5}]", "data.stages.0.weights is missing (names, each with a number at least 0)"),
        ("data.stages=7", "data.stages = 7: it takes a list, each a section with step, share and weights"),
        (
            "data.stages=[{step: 5, weights: {mail: x}}]",
            'data.stages.0.weights = {"mail": "x"}: it takes names, each with a number at least 0',
        ),
    ],
)
def test_sections_by_name_and_in_lists(sound: Path, word: str, message: str) -> None:
    with pytest.raises(ConfigError) as told:
        load_config(sound, [word])
    assert message in str(told.value)
