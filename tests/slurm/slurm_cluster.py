"""A real Slurm on this machine: a controller and a few nodes, of which tests take the life.

Root on Debian. Each node has its own network and host name where the kernel lets us make one (`isolated`), else all
share the machine's: then a node can be killed, but not cut off. Nothing is left behind: every daemon is a child of this
process and dies with it.

    python tests/slurm/slurm_cluster.py install        Debian's packages
    python tests/slurm/slurm_cluster.py shell          a shell with a cluster around it
"""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

PACKAGES = ["munge", "slurmctld", "slurmd", "slurm-client", "iproute2"]
NETWORK, BRIDGE, MARK = "10.83.7", "bigtrain0", "# bigtrain test cluster"
_UP = {"idle", "mixed", "allocated", "completing"}
PATIENCE = 400.0
"""Seconds in which anything here must have happened, on a machine that is busy with several runs at once."""
_DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")


def wait_for(what: str, condition: Callable[[], object], seconds: float, every: float = 0.25) -> None:
    """Look again and again until `condition` holds. To ask Slurm costs some hundredths of a second of a core.

    Raises:
        TimeoutError: It has not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come about within {seconds:g} seconds")
        time.sleep(every)


class Cluster:
    """Nodes n1 … n4 in the partition `main` (default), further ones in `low`; `high` has all, and preempts both.

    In `low` a job has its nodes for itself, and what is done to them befalls no other. Several threads may use it.
    """

    def __init__(self, folder: Path, nodes: int = 4, further: int = 14, cpus: int = 4, gpus: int = 2) -> None:
        self.folder = folder
        self.nodes = [f"n{number}" for number in range(1, nodes + further + 1)]
        self._in_main = nodes
        self._cpus, self._gpus = cpus, gpus
        self.isolated = _can_isolate()
        self._keeper = ThreadPoolExecutor(1)  # for the kernel the thread that starts a daemon is its parent
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._homes: dict[str, subprocess.Popen[bytes]] = {}
        self._configuration = folder / "slurm.conf"
        self.env = {"SLURM_CONF": str(self._configuration)}
        """What Slurm's commands need to find this cluster."""

    def start(self) -> None:
        """Start everything and wait until all nodes are up."""
        self.folder.chmod(0o755)  # munge's clients must come through
        for name in ("state", "devices", *(f"spool-{node}" for node in self.nodes)):
            (self.folder / name).mkdir()
        self._write_hosts(self.nodes)
        if self.isolated:
            self._make_bridge()
        self._configure()
        key, socket_path = self.folder / "munge.key", self.folder / "munge.sock"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        files = {"key-file": key, "socket": socket_path, "pid-file": self.folder / "munged.pid"}
        files |= {"log-file": self.folder / "munged.log", "seed-file": self.folder / "munge.seed"}
        self._daemon("munged", ["munged", "--foreground", *(f"--{name}={path}" for name, path in files.items())])
        wait_for("munge", socket_path.exists, 60)
        self._daemon("slurmctld", ["slurmctld", "-D"])
        wait_for("the controller", lambda: "is UP" in self.ask("scontrol", "ping", check=False), 60)
        for node in self.nodes:
            self._boot(node)
        for node in self.nodes:
            self._await(node)

    def stop(self) -> None:
        """End everything."""
        for node in self.nodes:
            self.kill(node)
        for name in ("slurmctld", "munged"):
            if daemon := self._daemons.get(name):
                daemon.terminate()
                daemon.wait()
        for home in self._homes.values():
            home.kill()
            home.wait()
        if self.isolated:
            subprocess.run(["ip", "link", "del", BRIDGE], check=False)
        self._write_hosts([])
        self._keeper.shutdown()

    def ask(self, *command: str, check: bool = True, **variables: str) -> str:
        """What a command prints, run with this cluster as its Slurm."""
        env = {**os.environ, **self.env, **variables}
        return subprocess.run(command, env=env, check=check, stdout=subprocess.PIPE, text=True).stdout

    def run(self, *command: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        """A command to its end, with this cluster as its Slurm: how it ended and what it told.

        Raises:
            subprocess.TimeoutExpired: It has waited too long. `salloc` would for ever.
        """
        env = {**os.environ, **self.env, **variables}
        return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False, timeout=PATIENCE)

    def kill(self, node: str) -> None:
        """What a power cut does: nothing of the node lives on."""
        if daemon := self._daemons.get(node):
            daemon.kill()
            daemon.wait()
        while found := list(self._processes(node)):  # one may fork between a look and a stroke
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def revive(self, node: str) -> None:
        """Start a node, and wait until it is up."""
        self._boot(node)
        self._await(node)

    def cut(self, node: str) -> None:
        """Pull the plug of its network: nothing is closed, nothing is answered. Without one its processes freeze."""
        self._plug(node, "down", signal.SIGSTOP)

    def repair(self, node: str) -> None:
        """Bring a node back, however it was lost."""
        self._plug(node, "up", signal.SIGCONT)
        if self._daemons[node].poll() is not None:
            self._boot(node)
        self._await(node)

    def _boot(self, node: str) -> None:
        if self.isolated and node not in self._homes:
            self._build_home(node)
        self._daemon(node, [*self._inside(node), "env", f"SLURMD_NODENAME={node}", "slurmd", "-D", "-N", node])

    def _await(self, node: str) -> None:
        wait_for(f"node {node}", lambda: self._state(node) in _UP, 180)

    def _plug(self, node: str, state: str, otherwise: signal.Signals) -> None:
        if self.isolated:
            _ip("link", "set", f"bt-{node}", state)
        else:
            for pid in self._processes(node):
                os.kill(pid, otherwise)

    def _state(self, node: str) -> str:
        return (
            self.ask("sinfo", "--noheader", "--Node", f"--nodes={node}", "--format=%T", check=False)
            .split("\n")[0]
            .strip()
        )

    def _daemon(self, name: str, command: Sequence[str]) -> None:
        self._daemons[name] = self._start(command, self.folder / f"{name}.out")

    def _start(self, command: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
        """In the thread that lives as long as the cluster."""

        def start() -> subprocess.Popen[bytes]:
            env = {**os.environ, **self.env}
            with output.open("ab") as out:
                return subprocess.Popen(
                    [*_DIE_WITH_PARENT, *command],
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )

        return self._keeper.submit(start).result()

    def _processes(self, node: str) -> Iterator[int]:
        home = self._homes.get(node)
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if home is not None:
                    there = (path / "ns/net").readlink() == Path(f"/proc/{home.pid}/ns/net").readlink()
                    if there and int(path.name) != home.pid:
                        yield int(path.name)
                else:
                    variables = (path / "environ").read_bytes().split(b"\0")
                    marks = {f"SLURM_CONF={self._configuration}".encode(), f"SLURMD_NODENAME={node}".encode()}
                    if marks <= set(variables):
                        yield int(path.name)

    def _inside(self, node: str) -> list[str]:
        """Words that take a command to a node."""
        if not self.isolated:
            return []
        return ["nsenter", "--target", str(self._homes[node].pid), "--net", "--uts"]

    def _make_bridge(self) -> None:
        subprocess.run(["ip", "link", "del", BRIDGE], check=False, stderr=subprocess.DEVNULL)
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")

    def _build_home(self, node: str) -> None:
        """A host name and a network of its own, kept by a process that sleeps."""
        number = self.nodes.index(node) + 1
        command = ["unshare", "--net", "--uts", "sh", "-c", f"hostname {node} && exec sleep infinity"]
        home = self._homes[node] = self._start(command, self.folder / f"{node}.out")
        name = ["nsenter", "--target", str(home.pid), "--uts", "hostname"]
        named = lambda: subprocess.run(name, check=False, capture_output=True, text=True).stdout.strip() == node  # noqa: E731
        wait_for(f"the home of {node}", named, 60)
        subprocess.run(
            ["ip", "link", "del", f"bt-{node}"], check=False, stderr=subprocess.DEVNULL
        )  # of one that was killed
        _ip("link", "add", f"bt-{node}", "type", "veth", "peer", "name", "eth0", "netns", str(home.pid))
        _ip("link", "set", f"bt-{node}", "master", BRIDGE, "up")
        inside = self._inside(node)
        for words in (["link", "set", "lo", "up"], ["addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0"]):
            subprocess.run([*inside, "ip", *words], check=True)
        subprocess.run([*inside, "ip", "link", "set", "eth0", "up"], check=True)

    def _write_hosts(self, nodes: Sequence[str]) -> None:
        """In place: it may be mounted."""
        kept = [line for line in Path("/etc/hosts").read_text().splitlines() if not line.endswith(MARK)]
        addresses = [f"{NETWORK}.{number}" if self.isolated else "127.0.0.1" for number in range(1, len(nodes) + 1)]
        named = [f"{address} {node} {MARK}" for address, node in zip(addresses, nodes, strict=True)]
        Path("/etc/hosts").write_text("\n".join([*kept, *named]) + "\n")

    def _configure(self) -> None:
        folder, host = self.folder, socket.gethostname().partition(".")[0]
        count, in_main = len(self.nodes), self._in_main
        first = _free_ports(count + 2)
        for number in range(self._gpus):
            (folder / f"devices/gpu{number}").symlink_to("/dev/null")
        gpus = f"Name=gpu File={folder}/devices/gpu[0-{self._gpus - 1}]\n" if self._gpus else ""
        (folder / "gres.conf").write_text(f"AutoDetect=off\n{gpus}")
        where = f"NodeAddr={NETWORK}.[1-{count}] Port={first + 1}"
        if not self.isolated:
            where = f"NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first + 1}-{first + count}]"
        address = f"{NETWORK}.254" if self.isolated else "127.0.0.1"
        resources = f"CPUs={self._cpus} RealMemory=16000 Gres=gpu:{self._gpus}"
        self._configuration.write_text(f"""\
ClusterName=bigtrain
SlurmUser=root
SlurmctldHost={host}({address})
SlurmctldPort={first}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
FirstJobId={int(time.time()) // 10 % 10**7 + 1000}
AuthInfo=socket={folder}/munge.sock,cred_expire=5
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmdTimeout=10
KillWait=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
PropagateResourceLimits=NONE
SlurmdParameters=config_overrides
LaunchParameters=use_interactive_step
InteractiveStepOptions="--interactive --preserve-env $SHELL"
GresTypes=gpu
NodeName=n[1-{count}] {where} {resources}
PartitionName=main Nodes=n[1-{in_main}] Default=YES PriorityTier=10
PartitionName=high Nodes=ALL PriorityTier=20
PartitionName=low Nodes=n[{in_main + 1}-{count}] PriorityTier=1 OverSubscribe=EXCLUSIVE
""")


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A cluster that lives as long as the block; where there is one already, when that is gone."""
    lock = Path(tempfile.gettempdir()) / "bigtrain-slurm.lock"
    with lock.open("w") as held, tempfile.TemporaryDirectory(prefix="bigtrain-slurm-") as folder:
        fcntl.flock(held, fcntl.LOCK_EX)
        cluster = Cluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def install() -> None:
    """Debian's packages, without the services that they would start."""
    if all(
        shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("slurmctld", "slurmd", "munged", "ip")
    ):
        return
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        subprocess.run(["apt-get", "-qq", "update"], env=env, check=True)
        command = ["apt-get", "-qq", "install", "--yes", "--no-install-recommends", *PACKAGES]
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    finally:
        if ours:
            policy.unlink()


def _can_isolate() -> bool:
    probe = ["unshare", "--net", "--uts", "ip", "link", "add", "probe", "type", "bridge"]
    return subprocess.run(probe, check=False, capture_output=True).returncode == 0


def _free_ports(count: int) -> int:
    """The first of so many neighbouring ports that nobody listens on."""
    for first in range(21_000, 30_000, 50):
        with suppress(OSError):
            for number in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("", number))
            return first
    raise OSError("no free ports between 21000 and 30000")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def main() -> None:
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    match sys.argv[1:]:
        case ["install"]:
            install()
        case ["shell", *words]:
            with running_cluster() as cluster:
                command = words or [os.environ.get("SHELL", "bash")]
                sys.exit(subprocess.run(command, env={**os.environ, **cluster.env}, check=False).returncode)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
