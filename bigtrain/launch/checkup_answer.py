"""What a checkup asks of a node, and what the node answers."""

from dataclasses import dataclass, field

LINE = "bigtrain-node "
"""What the line with the answer begins with: libraries may print others."""


@dataclass(frozen=True)
class Asked:
    """The question, the same for all nodes."""

    seconds: float
    """Time to answer in."""
    marker: str
    """A file in the run's folder; its neighbours are written to measure speed."""
    token: str
    """What is in it."""
    checkpoint_dir: str
    """Where checkpoints will lie; empty: behind a URL."""
    datasets: dict[str, str]
    """Key of the configuration: folder or URL."""


@dataclass
class Network:
    """What a node met on the way to the others."""

    unreachable: str = ""
    """Why it could not come to the meeting place, which is where rank 0 of the run would listen."""
    lost: str = ""
    """What it waited for in vain after that."""
    device: str = "cpu"
    """What lay at the ends: `cpu` (gloo), or `cuda` (NCCL, the first GPU of each node)."""
    met: int = 0
    """Nodes that it has exchanged numbers with."""
    best: float = 0.0
    """Bytes a second with the best of them."""
    failed: dict[int, str] = field(default_factory=dict)
    """Those it could not, by rank: why."""
    skipped: int = 0
    """Nodes that there was no time for."""
    all_reduce: float = 0.0
    """Bytes a second through this node in an all-reduce of all nodes; 0: there was none."""
    clock: float = 0.0
    """Seconds since 1970 by its own clock, when all had met; 0: unknown."""


@dataclass
class Answer:
    """What a node found. It is filled as the node goes along, and sent as far as it came."""

    name: str
    """As Slurm calls it."""
    rank: int
    doing: str = ""
    """What it was at when its time was over; empty: it has finished."""
    fault: str = ""
    """Why it could not go on."""
    nodes: int = 0
    """Of the step, by Slurm's variables there."""
    environment: dict[str, str] = field(default_factory=dict)
    """Version of each thing that must be the same everywhere."""
    slurm_gpus: int = 0
    """GPUs that Slurm's variables promise."""
    torch_gpus: int = 0
    """GPUs that torch sees."""
    cuda_build: bool = False
    """Whether this torch could use any, and was not told to compute on the CPU."""
    gpu_faults: list[str] = field(default_factory=list)
    gpu_throttled: list[str] = field(default_factory=list)
    folder_error: str = ""
    """Why the run's folder cannot be written; empty: it can."""
    sees_marker: bool | None = None
    """Whether the marker is there; None: it has not come to looking for it."""
    written: float = 0.0
    """Bytes a second to the run's folder, synced; 0: unknown."""
    free: int = -1
    """Bytes left where checkpoints will lie; -1: unknown."""
    data_errors: list[str] = field(default_factory=list)
    network: Network = field(default_factory=Network)
