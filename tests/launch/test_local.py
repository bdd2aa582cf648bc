"""The supervisor: exit codes, signals, what it says, and that nothing is left behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from launched import INPUT, Launcher, all_gone

from bigtrain.errors import ConfigError
from bigtrain.launch.environment import World
from bigtrain.launch.local import run_workers

Launch = Callable[..., Launcher]


def test_every_worker_finds_its_place(launch: Launch) -> None:
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR OMP_NUM_THREADS"
    body = f"tell(*(os.environ[name] for name in {names.split()}), int(os.environ['MASTER_PORT']) > 1023)"
    launcher = launch(body, nproc=3, env={"OMP_NUM_THREADS": "7"})
    assert launcher.words(3) == [f"{n} {n} 3 3 127.0.0.1 7 True" for n in range(3)]
    assert launcher.end() == (0, "", "")


def test_every_worker_has_the_input_to_itself(launch: Launch) -> None:
    launcher = launch("tell(len(sys.stdin.read()), sys.stdin.read() == '')", nproc=3)
    assert set(launcher.words(3)) == {f"{len(INPUT)} True"}
    assert launcher.end()[0] == 0


def test_another_node_counts_on(tmp_path: Path) -> None:
    """Ranks of the second node, where rank 0 listens, and the cores shared between the processes. The logs are there
    because the workers fail."""
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT OMP_NUM_THREADS"
    program = f"""
import os, pathlib, time
print(*(os.environ[name] for name in {names.split()}), flush=True)
met = pathlib.Path({str(tmp_path / "met")!r})
(met / os.environ["RANK"]).touch()
while len(list(met.iterdir())) < 2:
    time.sleep(0.01)
raise SystemExit(3)
"""
    (tmp_path / "met").mkdir()
    command = [sys.executable, "-c", program]
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    world = World(2, nnodes=2, node_rank=1, master_address="n1", master_port=1234)
    assert run_workers(command, world, log_dir=tmp_path / "logs", env=env) == 3
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    logs = {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert logs == {f"rank-0000{2 + n}.log": f"{2 + n} {n} 4 2 n1 1234 {threads}\n" for n in (0, 1)}


def test_a_failure_ends_the_others_and_is_told_last(launch: Launch) -> None:
    body = """
wait_for(signal.SIGTERM, signal.SIGUSR2)
if rank == 1:
    print("about to fail", flush=True)
    raise RuntimeError("the shard is damaged")
"""
    launcher = launch(body, nproc=3)
    workers = launcher.ready(3)
    workers[1].send_signal(signal.SIGUSR2)
    code, _, err = launcher.end()
    first, *_, last = err.splitlines()
    assert code == 1
    assert first.startswith("rank 1 (pid ")
    assert first.endswith(f") ended with exit code 1; the end of {launcher.log_dir}/rank-00001.log:")
    assert "about to fail\nTraceback (most recent call last):" in err
    assert last == "RuntimeError: the shard is damaged"
    assert all_gone(workers)


def test_a_failure_of_rank_0_is_told_in_a_line(launch: Launch) -> None:
    """Its traceback is on the terminal already."""
    code, _, err = launch("if rank == 0: raise SystemExit(3)\nsignal.pause()").end()
    assert code == 3
    assert err.startswith("rank 0 (pid ")
    assert err.endswith(") ended with exit code 3\n")


def test_those_who_ignore_sigterm_are_killed_with_their_children(launch: Launch) -> None:
    body = """
if rank == 0:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell(child.pid)
    while True:
        signal.pause()
wait_for(signal.SIGUSR2)
sys.exit(5)
"""
    launcher = launch(body, grace=0.1)
    (_, stubborn, child), (_, failing, _) = launcher.told(2)
    left = [stubborn, psutil.Process(int(child))]
    failing.send_signal(signal.SIGUSR2)
    code, _, err = launcher.end()
    assert code == 5
    assert err.startswith(f"rank 1 (pid {failing.pid}) ended with exit code 5")
    assert all_gone(left)


def test_sigterm_comes_before_sigkill(launch: Launch) -> None:
    """A worker left behind has its grace to write down what it must."""
    body = """
if rank == 0:
    number = wait_for(signal.SIGTERM)
    print("said goodbye at", signal.Signals(number).name, flush=True)
    sys.exit(0)
wait_for(signal.SIGUSR2)
sys.exit(1)
"""
    launcher = launch(body)
    _, failing = launcher.ready(2)
    failing.send_signal(signal.SIGUSR2)
    code, out, _ = launcher.end()
    assert (code, out) == (1, "said goodbye at SIGTERM\n")


@pytest.mark.parametrize(("number", "hint"), [(signal.SIGKILL, "sent from outside"), (signal.SIGABRT, "Fatal Python")])
def test_death_by_a_signal_has_its_name(launch: Launch, number: signal.Signals, hint: str) -> None:
    body = f"if rank == 1: os.kill(os.getpid(), {int(number)})\nsignal.pause()"
    code, _, err = launch(body).end()
    assert code == 128 + number
    assert f") ended by signal {int(number)} ({number.name})" in err
    assert hint in err


def test_a_mistake_that_rank_0_has_told_is_not_told_twice(launch: Launch) -> None:
    body = "print('training.steps is wrong', file=sys.stderr) if rank == 0 else None\nsys.exit(2)"
    code, _, err = launch(body, nproc=3).end()
    assert (code, err) == (2, "training.steps is wrong\n")


def test_a_mistake_of_another_rank_is_told_from_its_log(launch: Launch) -> None:
    """It counts even where another rank fell first, since its peer was gone."""
    body = """
if rank == 1:
    print("no such shard: a.arrow", file=sys.stderr)
    wait_for(signal.SIGTERM)
    sys.exit(2)
wait_for(signal.SIGUSR2)
sys.exit(1)
"""
    launcher = launch(body)
    peer, _ = launcher.ready(2)
    peer.send_signal(signal.SIGUSR2)
    code, _, err = launcher.end()
    assert code == 2
    assert err.startswith("rank 1 ")
    assert err.endswith("\nno such shard: a.arrow\n")


def test_rank_0_may_finish_telling_a_mistake(launch: Launch) -> None:
    """Another rank may be quicker to end with 2; nobody is interrupted for it."""
    body = """
if rank == 1:
    sys.exit(2)
wait_for(signal.SIGUSR2)
print("training.steps is wrong", file=sys.stderr)
sys.exit(2)
"""
    launcher = launch(body)
    (rank_0,) = launcher.ready(1)
    assert all_gone([child for child in psutil.Process(launcher.process.pid).children() if child != rank_0])
    rank_0.send_signal(signal.SIGUSR2)
    assert launcher.end() == (2, "", "training.steps is wrong\n")


def test_a_mistake_that_rank_0_does_not_see(launch: Launch) -> None:
    body = "if rank == 1: sys.exit(2)\nwait_for(signal.SIGTERM)"
    code, _, err = launch(body, grace=0.1).end()
    assert code == 2
    assert err.startswith("rank 1 ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_stop_signal_reaches_every_worker(launch: Launch, number: signal.Signals) -> None:
    body = f"name = wait_for({int(number)}).name\nprint(name, flush=True)\ntell(name)\nsys.exit(75)"
    launcher = launch(body, nproc=3)
    workers = launcher.ready(3)
    launcher.signal(number)
    assert set(launcher.words(3)) == {number.name}
    assert launcher.end() == (75, f"{number.name}\n", "")
    assert all_gone(workers)


def test_those_still_writing_are_waited_for(launch: Launch) -> None:
    """The first to end with 75 does not start the clock: here it would ring at once."""
    body = """
wait_for(signal.SIGTERM)
if rank == 1:
    wait_for(signal.SIGUSR2)
    tell("checkpoint is complete")
sys.exit(75)
"""
    launcher = launch(body, grace=0.0)
    first, _ = launcher.ready(2)
    launcher.signal(signal.SIGTERM)
    (writing,) = launcher.ready(1)
    assert all_gone([first])  # reaped, that is: the launcher knows
    writing.send_signal(signal.SIGUSR2)
    assert launcher.end() == (75, "", "")
    assert launcher.words(1) == ["checkpoint is complete"]


def test_workers_may_stop_by_themselves(launch: Launch) -> None:
    """Slurm may signal the workers and not the launcher; one of them may have been done just then."""
    assert launch("sys.exit(75 if rank else 0)").end() == (75, "", "")


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 128 + signal.SIGINT)]
)
def test_a_stop_before_the_workers_listen(launch: Launch, number: signal.Signals, expected: int) -> None:
    """Nothing was done, so nothing is lost: they die of the signal, and that is no failure."""
    launcher = launch(f"signal.signal({int(number)}, signal.SIG_DFL)\ntell('ready')\nsignal.pause()")
    workers = launcher.ready(2)
    launcher.signal(number)
    assert launcher.end() == (expected, "", "")
    assert all_gone(workers)


def test_a_failure_while_stopping_is_a_failure(launch: Launch) -> None:
    body = """
wait_for(signal.SIGUSR1)
if rank == 1:
    raise OSError("disk full")
sys.exit(75)
"""
    launcher = launch(body)
    launcher.ready(2)
    launcher.signal(signal.SIGUSR1)
    code, _, err = launcher.end()
    assert code == 1
    assert err.endswith("OSError: disk full\n")


def test_the_second_interrupt_kills(launch: Launch) -> None:
    body = """
for _ in range(2):
    wait_for(signal.SIGINT)
    tell("no")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
signal.pause()
"""
    launcher = launch(body)
    workers = launcher.ready(2)
    launcher.signal(signal.SIGINT)
    assert {words for _, _, words in launcher.told(4)} == {"no", "ready"}
    launcher.signal(signal.SIGINT)
    assert launcher.end() == (128 + signal.SIGINT, "", "")
    assert all_gone(workers)


def test_the_second_sigterm_does_not_kill(launch: Launch) -> None:
    """Slurm sends one to the step, and srun may pass on another."""
    body = "[wait_for(signal.SIGTERM) for _ in range(2)]\nsys.exit(75)"
    launcher = launch(body)
    for _ in range(2):
        launcher.ready(2)
        launcher.signal(signal.SIGTERM)
    assert launcher.end() == (75, "", "")


def test_workers_do_not_outlive_a_killed_launcher(launch: Launch) -> None:
    launcher = launch("wait_for(signal.SIGTERM)", nproc=3)
    workers = launcher.ready(3)
    launcher.signal(signal.SIGKILL)
    assert launcher.end()[0] == -signal.SIGKILL
    assert all_gone(workers)


def test_only_the_end_of_this_start_is_told(launch: Launch) -> None:
    """A log is appended to; what an earlier start wrote is not taken for this one's words."""
    assert launch("if rank == 1:\n    print('from before', flush=True)\n    sys.exit(9)\nsignal.pause()").end()[0] == 9
    lines = "if rank == 1:\n    for n in range(99):\n        print('line', n)\n    sys.exit(9)\nsignal.pause()"
    launcher = launch(lines)
    assert launcher.end()[2].splitlines()[1:] == [f"line {n}" for n in range(59, 99)]
    assert (launcher.log_dir / "rank-00001.log").read_text().startswith("from before\nline 0\n")
    code, _, err = launch("if rank == 1: sys.exit(9)\nsignal.pause()").end()
    assert code == 9
    assert len(err.splitlines()) == 1


def test_without_a_log_folder_all_share_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    lines = "import os, signal\nif os.environ['RANK'] == '0': signal.pause()\nos.write(1, b'here\\n')\nos._exit(4)"
    assert run_workers([sys.executable, "-c", lines], World(2)) == 4
    out, err = capfd.readouterr()
    assert out == "here\n"
    assert err.startswith("rank 1 (pid ")
    assert err.endswith(") ended with exit code 4\n")
    assert len(err.splitlines()) == 1


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot start .*/nothing: No such file"):
        run_workers([str(tmp_path / "nothing")], World(2))


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    """No worker is left behind, and the signals are as they were."""
    (tmp_path / "file").touch()
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGCHLD)
    world = World(2, nnodes=2, node_rank=1, master_port=1)
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(ConfigError, match=r"cannot write the log .*/file/rank-00002.log: "):
        run_workers(command, world, log_dir=tmp_path / "file")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGCHLD)) == before
    children = psutil.Process().children()
    assert not [child for child in children if "time.sleep(600)" in " ".join(child.cmdline())]


def test_the_launcher_starts_without_the_heavy_libraries() -> None:
    heavy = ["torch", "numpy", "transformers", "deepspeed", "wandb"]
    code = f"import sys, bigtrain.launch.local, bigtrain.launch.doctor; sys.exit(str(set(sys.modules) & set({heavy})))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr == "set()\n"


NODE = """
import os, sys
print("said by", os.environ["RANK"])
sys.exit(int(sys.argv[1]) if os.environ["RANK"] == "5" else 0)
"""


@pytest.mark.parametrize(
    ("code", "kept"), [(0, [3]), (75, [3]), (2, [3, 4, 5]), (9, [3, 4, 5])], ids=["done", "stopped", "mistake", "fault"]
)
def test_logs_are_kept_of_the_first_of_a_node_and_of_the_others_on_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kept: list[int]
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    world = World(3, nnodes=2, node_rank=1, master_port=1)
    logs = tmp_path / "logs"
    assert run_workers([sys.executable, "-c", NODE, str(code)], world, log_dir=logs) == code
    assert {path.name: path.read_text() for path in logs.iterdir()} == {
        f"rank-0000{rank}.log": f"said by {rank}\n" for rank in kept
    }
    assert list(scratch.iterdir()) == []


def test_a_log_that_finds_no_place_stays_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "file").touch()
    program = "import os, sys\nif os.environ['RANK'] == '1': sys.exit('what it met')"
    assert run_workers([sys.executable, "-c", program], World(2), log_dir=tmp_path / "file/logs") == 1
    (log,) = tmp_path.glob("bigtrain-*/rank-00001.log")
    told, ended, met = capfd.readouterr().err.splitlines()
    assert told == f"{tmp_path}/file/logs cannot be written: Not a directory; {log} stays"
    assert ended.endswith(f") ended with exit code 1; the end of {log}:")
    assert met == "what it met"
    assert log.read_text() == "what it met\n"
