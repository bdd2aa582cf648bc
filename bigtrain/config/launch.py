"""The options of a run's job under Slurm; as in `schema`, the docstring under a field is its documentation."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from bigtrain.config.section import NonNegative, Section, Text


class LaunchConfig(Section):
    """What a Slurm job asks for, and what becomes of it when something fails. It never changes a run's result.

    `bigtrain submit` makes `sbatch` options of it; a job that was submitted otherwise has its own, and heeds only
    `spare_nodes` and what follows.
    """

    nodes: PositiveInt = 1
    """Nodes that compute."""
    gpus_per_node: NonNegativeInt = 0
    """GPUs of each; 0 computes on CPUs."""
    processes_per_node: PositiveInt | None = None
    """Default: one for each GPU; without GPUs what one copy of the model takes."""
    cpus_per_node: PositiveInt | None = None
    """Cores of each node; default: with GPUs whole nodes (`--exclusive`), else one for each process."""
    memory_gb_per_node: PositiveInt | None = None
    """Default: with GPUs all there is, else Slurm's own default."""
    time: Text = "24:00:00"
    """Time limit, as Slurm writes it: `days-hours:minutes:seconds`."""
    partition: Text | None = None
    """Default: Slurm's own."""
    account: Text | None = None
    """Whose budget pays."""
    qos: Text | None = None
    """Quality of service."""
    constraint: Text | None = None
    """Features that the nodes must have."""
    exclude: Text | None = None
    """Nodes not to use: `n[3,7]`."""
    container_image: Text | None = None
    """Image that the run's processes live in; default: none."""
    container_runtime: Literal["pyxis", "apptainer"] = "pyxis"
    """What opens it: Slurm's plugin Pyxis with Enroot (`srun --container-image`), or `apptainer exec`."""
    container_mounts: list[Text] = Field(default_factory=list)
    """Folders that are seen inside, `outside:inside`; the project's and the run's are always."""
    setup: list[Text] = Field(default_factory=list)
    """Lines of shell before the run starts: `module load …`, `export NCCL_SOCKET_IFNAME=…`."""
    sbatch: dict[str, str] = Field(default_factory=dict)
    """Further options of `sbatch` by their long names: `{reservation: llm, mail-type: END}`."""
    warning_seconds: PositiveInt = 120
    """How long before its time limit a job is told to write a checkpoint and end."""
    chain: bool = False
    """Follow a job that ran into its limit with a new one instead of putting the same back into the queue, where
    Slurm does not allow that."""
    checkup_timeout: NonNegative = 120.0
    """Seconds in which the nodes of a job must show, before a run starts on them, that they are fit for it, alike, and
    reach one another, see `bigtrain doctor CONFIG`; 0 leaves that out."""
    spare_nodes: NonNegativeInt = 0
    """Nodes that are allocated besides and wait to take the place of one that fails."""
    elastic: bool = False
    """Go on with fewer nodes, the same global batch and fewer copies of the model, when too few are left."""
