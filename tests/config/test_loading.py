"""Reading: files, `extends`, overrides, YAML's numbers, and writing back."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bigtrain.config import Config, load_config, parse_config, to_yaml
from bigtrain.config.reading import dump, file_layers
from bigtrain.errors import ConfigError


def write(folder: Path, **files: str) -> Path:
    """Write NAME.yaml for each keyword; returns the first."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(files))}.yaml"


def test_defaults_fill_what_a_file_leaves_out(sound: Path) -> None:
    config = load_config(sound)
    assert config.model.hidden_size == 64
    assert config.parallel.tensor == 1
    assert config.optimizer.betas == (0.9, 0.95)
    assert (config.model.head_size, config.model.ffn_size, config.model.kv_heads) == (8, 256, 4)


@pytest.mark.parametrize("name", [n for n, f in Config.model_fields.items() if not f.is_required()])
def test_every_section_of_defaults_can_be_made(name: str) -> None:
    section = Config.model_fields[name].annotation
    assert section is not None
    assert section() == Config.model_fields[name].default
    section.model_validate(section().model_dump())  # pydantic does not check defaults; this does


def test_a_configuration_is_a_value(sound: Path) -> None:
    config = load_config(sound)
    with pytest.raises(ValueError, match="frozen"):
        config.training.steps = 3  # type: ignore[misc]
    assert config == load_config(sound)


def test_extends_chain_the_nearest_word_wins(tmp_path: Path, sound: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path, middle="extends: sound.yaml\ntraining: {steps: 7, seed: 7}\nparallel: {tensor: 2}\n")
    top = write(tmp_path / "sub", top="extends: ../middle.yaml\ntraining: {seed: 8}\n")
    config = load_config(top)
    assert (config.training.steps, config.training.seed, config.parallel.tensor) == (7, 8, 2)
    assert config.training.global_batch_size == 16


def test_extends_list_the_later_wins_and_lists_are_replaced(tmp_path: Path, sound: Path) -> None:
    top = write(
        tmp_path,
        top="extends: [sound.yaml, a.yaml, b.yaml]\n",
        a="optimizer: {lr: 1.0, eps: 1.0, betas: [0.1, 0.2]}\n",
        b="optimizer: {lr: 2.0, betas: [0.3, 0.4]}\n",
    )
    optimizer = load_config(top).optimizer
    assert (optimizer.lr, optimizer.eps, optimizer.betas) == (2.0, 1.0, (0.3, 0.4))


def test_two_files_may_extend_the_same_third(tmp_path: Path, sound: Path) -> None:
    top = write(
        tmp_path,
        top="extends: [left.yaml, right.yaml]",
        left="extends: sound.yaml\ntraining: {steps: 5}",
        right="extends: sound.yaml",
    )
    assert load_config(top).training.steps == 100  # right.yaml says what sound.yaml says, later


def show(folder: Path, text: bytes) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "bigtrain", "config", "show", "-", "training.seed=5"]
    return subprocess.run(command, input=text, cwd=folder, capture_output=True, check=False)


def test_standard_input_is_a_file_that_lies_here(tmp_path: Path, sound: Path) -> None:
    (tmp_path / "base.yaml").write_text(sound.read_text())
    shown = show(tmp_path, "extends: base.yaml\nlogging: {run_name: Käse}".encode())
    config = parse_config(yaml.safe_load(shown.stdout))
    assert config == load_config(sound, ["training.seed=5", "logging.run_name=Käse"])
    assert show(tmp_path, shown.stdout).stdout == shown.stdout


@pytest.mark.parametrize(
    ("text", "told"),
    [(b"- 1", b"standard input: a configuration holds sections"), (b"\xff", b"configuration -: it is not UTF-8 text")],
)
def test_a_wrong_standard_input_is_told(tmp_path: Path, text: bytes, told: bytes) -> None:
    shown = show(tmp_path, text)
    assert shown.returncode == 2
    assert told in shown.stderr


def test_extends_circle_is_told_with_its_path(tmp_path: Path) -> None:
    top = write(tmp_path, a="extends: b.yaml", b="extends: c.yaml", c="extends: b.yaml")
    with pytest.raises(ConfigError, match=r"circle: \S*b.yaml -> \S*c.yaml -> \S*b.yaml$"):
        load_config(top)


def test_extends_of_a_missing_file_names_both_and_the_nearest(tmp_path: Path, sound: Path) -> None:
    top = write(tmp_path, top="extends: sond.yaml")
    with pytest.raises(ConfigError, match=r"sond.yaml, which \S*top.yaml extends: No such file.* mean \S*sound.yaml\?"):
        load_config(top)


def test_an_empty_section_says_nothing(tmp_path: Path, sound: Path) -> None:
    top = write(tmp_path, top="extends: sound.yaml\nmodel:\ntraining:\n  # steps: 3\nparallel:\n")
    assert load_config(top) == load_config(sound)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("optimizer.lr=3e-4", 3e-4),
        ("optimizer.lr=1E-3", 1e-3),
        ("optimizer.lr=.5", 0.5),
        ("optimizer.lr=2", 2.0),
        ("training.steps=1e5", 100_000),
        ("training.steps=10_000", 10_000),
        ("optimizer.betas=[0.8, 0.9]", (0.8, 0.9)),
        ("data.validation=null", None),
        ("data.validation=", None),
        ("parallel.sequence=true", True),
        ("logging.run_name='17'", "17"),
        ('logging.run_name="null"', "null"),
        ("logging.run_name=a=b", "a=b"),
        ("logging.run_name=2026-01-01", "2026-01-01"),
        ("logging.run_name=12:30", "12:30"),
        ("logging.run_name=010", "010"),
        ("logging.run_name=Größe", "Größe"),
    ],
)
def test_override_values_are_yaml(sound: Path, word: str, value: object) -> None:
    config = load_config(sound, [word])
    section, key = word.partition("=")[0].split(".")
    got = getattr(getattr(config, section), key)
    assert (got, type(got)) == (value, type(value))


def test_the_later_override_wins_and_a_section_is_joined(sound: Path) -> None:
    config = load_config(sound, ["training.steps=5", "training.steps=6", "training={seed: 9}"])
    assert (config.training.steps, config.training.seed) == (6, 9)


def test_yaml_merge_keys_and_anchors_work(tmp_path: Path, sound: Path) -> None:
    text = "extends: sound.yaml\noptimizer: &o {<<: {lr: 1.0, eps: 0.5}, eps: 0.25}\n"
    optimizer = load_config(write(tmp_path, top=text)).optimizer
    assert (optimizer.lr, optimizer.eps) == (1.0, 0.25)


def test_to_yaml_spells_out_every_default_and_reads_back(tmp_path: Path, sound: Path) -> None:
    config = load_config(sound, ["optimizer.eps=1e-12", "logging.run_name='1e5'", "optimizer.betas=[0, 0.5]"])
    text = to_yaml(config)
    assert load_config(write(tmp_path, again=text)) == config
    tree = yaml.safe_load(text)
    assert {name: list(tree[name]) for name in tree} == {
        name: list(getattr(config, name).model_dump()) for name in Config.model_fields
    }
    assert tree["logging"]["run_name"] == "1e5"  # any YAML reader sees text


@settings(deadline=None)
@example(text="\x85")  # which PyYAML loses where it writes non-ASCII text as it is
@given(text=st.one_of(st.text(min_size=1), st.from_regex(r"[-+0-9._eE:]{1,8}", fullmatch=True)))
def test_any_text_survives_writing_and_reading(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    if any(0xD800 <= ord(c) <= 0xDFFF for c in text):
        return  # half a character has no UTF-8
    path = tmp_path_factory.mktemp("text") / "config.yaml"
    path.write_text(dump({"logging": {"run_name": text}, "extends": []}), encoding="utf-8", newline="")
    assert file_layers(path)[-1].tree == {"logging": {"run_name": text}}


@settings(deadline=None)
@given(st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**15), 10**15)))
def test_any_number_survives_writing_and_reading(tmp_path_factory: pytest.TempPathFactory, number: float) -> None:
    path = tmp_path_factory.mktemp("number") / "config.yaml"
    path.write_text(dump({"optimizer": {"lr": number}}))
    assert file_layers(path)[-1].tree == {"optimizer": {"lr": number}}


def test_parse_config_takes_plain_dictionaries(sound: Path) -> None:
    config = load_config(sound)
    assert parse_config(json.loads(config.model_dump_json())) == config
    assert parse_config(config.model_dump()) == config
