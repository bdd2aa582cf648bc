"""Saving beside training, watched through a file system that opens files for writing only when the test lets it."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from bigtrain.checkpoint import catalog, store
from bigtrain.checkpoint.catalog import TrainingState
from bigtrain.checkpoint.holdings import holdings
from bigtrain.checkpoint.places import place
from bigtrain.checkpoint.saver import Saved, Saver
from bigtrain.config import Config
from bigtrain.parallel.engine import Engine

STATE = TrainingState(step=1, position=4, tokens=64)


class Gated(MemoryFileSystem):
    """A storage that is as slow, or as broken, as a test wants."""

    store: dict[str, Any] = {}  # noqa: RUF012 (of its own)
    gate = threading.Event()
    error: OSError | None = None
    opened: list[str] = []  # noqa: RUF012 (of the test that runs)

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "wb":
            Gated.gate.wait(60)
            Gated.opened.append("/".join(path.split("/")[-2:]))
            if Gated.error is not None:
                raise Gated.error
        return super().open(path, mode, **options)


@pytest.fixture
def slow() -> Iterator[Path]:
    """A folder of it, with the gate shut."""
    fsspec.register_implementation("memory", Gated, clobber=True)
    Gated.gate.clear()
    Gated.opened, Gated.error = [], None
    yield place("memory://run/checkpoints")
    Gated.gate.set()
    Gated.store.clear()
    fsspec.register_implementation("memory", MemoryFileSystem, clobber=True)


@pytest.fixture
def engine(engine_of: Callable[[Config], Engine], tiny: Callable[..., Config]) -> Engine:
    return engine_of(tiny())


def state_of(engine: Engine) -> list[torch.Tensor]:
    return [holding.values.clone() for holding in holdings(engine, to_save=False)]


def test_what_is_saved_is_the_state_of_its_step(engine: Engine, batches_of: Callable[..., Any], slow: Path) -> None:
    """Two steps are trained before a byte of it is written; it is not there until it is complete."""
    completed: list[Saved] = []
    saver = Saver(slow, engine, {}, keep_last=2, completed=completed.append)
    expected = state_of(engine)
    path = saver.save(STATE)
    for step in range(2):
        engine.train_step(batches_of(engine.config, step), 64, 0.1, step)
        saver.poll()
    assert completed == []
    assert catalog.newest(slow) is None
    Gated.gate.set()
    saver.finish()
    saver.close()
    assert [(saved.step, str(saved.path)) for saved in completed] == [(1, str(path))]
    assert completed[0].stalled_seconds < completed[0].written_seconds
    newest = catalog.newest(slow)
    assert newest is not None
    assert (newest.state, newest.adam_step) == (STATE, 0)
    store.load(newest, engine)
    assert all(torch.equal(a, b) for a, b in zip(state_of(engine), expected, strict=True))


def test_a_save_waits_for_the_one_before(engine: Engine, slow: Path) -> None:
    completed: list[Saved] = []
    saver = Saver(slow, engine, {}, keep_last=0, completed=completed.append)
    for step in (1, 2, 3):
        saver.save(replace(STATE, step=step))
        Gated.gate.set()
    saver.finish()
    saver.close()
    assert [saved.step for saved in completed] == [1, 2, 3]
    assert all(saved.waited_seconds > 0 for saved in completed[:2])
    files = ["__0_0.distcp", ".metadata.tmp", "complete.json"]
    folders = [f"step-0000000{step}" for step in (1, 2, 3)]
    written = [name for name in Gated.opened if not name.endswith("/latest")]
    assert written == [f"{folder}/{file}" for folder in folders for file in files], "the marker is the last"


def test_an_error_of_the_write_ends_the_next_step(engine: Engine, slow: Path) -> None:
    saver = Saver(slow, engine, {}, keep_last=0)
    Gated.gate.set()
    for step in (1, 2):
        saver.save(replace(STATE, step=step))
    saver.finish()
    Gated.error = OSError(5, "Input/output error")
    saver.save(replace(STATE, step=3))
    with pytest.raises(OSError, match="Input/output error"):
        saver.finish()
    newest = catalog.newest(slow)
    assert newest is not None
    assert newest.state.step == 2
    assert [path.name for path in slow.glob("step-*3")] == [], "nothing half-written stays"


def test_a_write_can_be_given_up(engine: Engine, slow: Path) -> None:
    """As a run that fails does: it does not wait for the disk to the end."""
    saver = Saver(slow, engine, {}, keep_last=0)
    saver.save(STATE)
    closing = threading.Thread(target=saver.close)
    closing.start()
    Gated.gate.set()
    closing.join(60)
    assert not closing.is_alive()
    assert catalog.newest(slow) is None
    Saver(slow, engine, {}, keep_last=0).close()
    assert list(slow.glob("step-*")) == [], "the next start removes what is left"


def test_the_host_memory_is_made_once(engine: Engine, tmp_path: Path) -> None:
    """The copy is as large as what is saved, and lies where it lay in every save."""
    saver = Saver(tmp_path, engine, {}, keep_last=0)
    saver.save(STATE)

    def where() -> dict[str, tuple[int, int]]:
        assert saver._planner is not None
        copies = saver._planner.state_dict
        return {name: (copy.data_ptr(), copy.untyped_storage().nbytes()) for name, copy in copies.items()}

    first = where()
    saver.save(replace(STATE, step=2))
    second = where()
    saver.finish()
    saver.close()
    assert first == second
    assert sum(size for _, size in first.values()) == sum(h.values.nbytes for h in holdings(engine, to_save=True))
