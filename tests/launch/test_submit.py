"""What `bigtrain submit` would hand to Slurm, and what it refuses before it asks."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bigtrain.config import load_config, to_yaml
from bigtrain.config.launch import LaunchConfig
from bigtrain.errors import ConfigError, DataError, LaunchError
from bigtrain.launch import batch, submit

PlanOf = Callable[..., submit.Plan]


@pytest.fixture
def plan_of(tiny: Callable[..., object], dataset: Path, tmp_path: Path) -> PlanOf:
    """A plan of the tiny configuration on the shared dataset."""
    path = tmp_path / "tiny.yaml"
    path.write_text(to_yaml(tiny(f"data.train={dataset / 'train'}", f"training.output_dir={tmp_path / 'run'}")))  # type: ignore[arg-type]
    return lambda *overrides, **options: submit.plan(path, overrides, **options)


def options(text: str) -> dict[str, str]:
    """The `#SBATCH` options of a script, as a shell would read them."""
    words = [
        shlex.split(line.removeprefix("#SBATCH --"))[0] for line in text.splitlines() if line.startswith("#SBATCH")
    ]
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def commands(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_whole_nodes_with_gpus(plan_of: PlanOf, tmp_path: Path) -> None:
    plan = plan_of(
        "launch.nodes=2",
        "launch.gpus_per_node=2",
        "training.micro_batch_size=1",
        "launch.time=12:00:00",
        "launch.partition=main",
        "launch.account=physics",
        "launch.qos=long",
        "launch.constraint=a100",
        "launch.exclude=n[3,7]",
        "launch.warning_seconds=300",
        "launch.sbatch={reservation: llm, contiguous: ''}",
        "logging.run_name=first try",
    )
    assert options(submit.script_text(plan, ["7", "9"])) == {
        "job-name": "first try",
        "nodes": "2",
        "ntasks-per-node": "1",
        "gpus-per-node": "2",
        "exclusive": "",
        "mem": "0",
        "time": "12:00:00",
        "partition": "main",
        "account": "physics",
        "qos": "long",
        "constraint": "a100",
        "exclude": "n[3,7]",
        "signal": "USR1@300",
        "open-mode": "append",
        "requeue": "",
        "dependency": "afterok:7:9",
        "kill-on-invalid-dep": "yes",
        "reservation": "llm",
        "contiguous": "",
        "chdir": str(Path.cwd()),
        "output": f"{tmp_path}/run/slurm/%j.out",
    }


def test_parts_of_nodes_without_gpus(plan_of: PlanOf) -> None:
    """A core for each process, and Slurm's own memory, unless they are given."""
    got = options(submit.script_text(plan_of("parallel.tensor=2")))
    assert got["cpus-per-task"] == "2"
    assert not {"mem", "exclusive", "gpus-per-node", "wckey", "dependency", "no-kill"} & set(got)
    got = options(submit.script_text(plan_of("launch.cpus_per_node=3", "launch.memory_gb_per_node=5")))
    assert (got["cpus-per-task"], got["mem"]) == ("3", "5G")
    got = options(submit.script_text(plan_of("launch.gpus_per_node=1", "launch.cpus_per_node=3")))
    assert (got["cpus-per-task"], got["mem"]) == ("3", "0")
    assert "exclusive" not in got


def test_spare_nodes_are_asked_for_and_a_lost_one_does_not_end_the_job(plan_of: PlanOf) -> None:
    got = options(submit.script_text(plan_of("launch.nodes=2", "launch.spare_nodes=1")))
    assert (got["nodes"], got["no-kill"]) == ("3", "")
    assert "no-kill" in options(submit.script_text(plan_of("launch.elastic=true")))


def test_a_chain_is_not_requeued_and_knows_its_own_script(plan_of: PlanOf, tmp_path: Path) -> None:
    text = submit.script_text(plan_of("launch.chain=true"))
    assert "no-requeue" in options(text)
    assert "requeue" not in options(text)
    assert f"export BIGTRAIN_SUBMISSION={tmp_path}/run/slurm/.submission_file_ID.sh" in commands(text)
    assert "BIGTRAIN_SUBMISSION" not in submit.script_text(plan_of())


def test_the_last_line_starts_what_sbatch_starts_by_hand(plan_of: PlanOf, tmp_path: Path) -> None:
    plan = plan_of("launch.processes_per_node=2", "launch.setup=[module load cuda, 'export A=\"b c\"']")
    *before, last = commands(submit.script_text(plan))
    assert before[:2] == ["module load cuda", 'export A="b c"']
    assert {f"export BIGTRAIN_PYTHON={sys.executable}", "unset BIGTRAIN_NPROC"} <= set(before)
    command, shell, script, config = shlex.split(last)
    assert (command, shell) == ("exec", "bash")
    assert Path(script) == Path(__file__).parents[2] / "slurm/pretrain.sh"
    assert Path(config).parent == tmp_path / "run/slurm"
    assert not (tmp_path / "run").exists(), "a plan writes nothing"


def test_fine_tuning_is_started_by_its_own_command(plan_of: PlanOf) -> None:
    words = "data.train=null", "finetune={task: classification, train: reviews.csv}"
    assert "export BIGTRAIN_COMMAND=finetune" in commands(submit.script_text(plan_of(*words)))
    assert "BIGTRAIN_COMMAND" not in submit.script_text(plan_of())


def test_names_with_blanks_and_percent_signs(plan_of: PlanOf, tmp_path: Path) -> None:
    """Slurm takes a percent sign in the name of an output for one of its own patterns."""
    text = submit.script_text(plan_of(f"training.output_dir='{tmp_path}/a %run'"))
    assert options(text)["output"] == f"{tmp_path}/a %%run/slurm/%j.out"
    assert shlex.split(commands(text)[-1])[-1].startswith(f"{tmp_path}/a %run/slurm/config-")


def test_a_container(plan_of: PlanOf, tmp_path: Path) -> None:
    """The supervisor opens it on each node; the project, this folder and the run are seen inside."""
    image = ["launch.container_image=/images/train one.sqsh", "launch.container_mounts=['/data:/data']"]
    text = submit.script_text(plan_of(*image, "launch.gpus_per_node=1"), [])
    exported = next(line for line in commands(text) if line.startswith("export BIGTRAIN_SRUN_ARGS="))
    words = shlex.split(shlex.split(exported)[1].partition("=")[2])
    assert words[0] == "--container-image=/images/train one.sqsh"
    mounts = words[1].removeprefix("--container-mounts=").split(",")
    assert mounts[0] == f"{batch.PROJECT}:{batch.PROJECT}"
    assert mounts[-2:] == [f"{tmp_path}/run:{tmp_path}/run", "/data:/data"]
    assert words[2] == f"--container-workdir={Path.cwd()}"
    assert "export BIGTRAIN_NODE_PYTHON=python3" in commands(text)

    apptainer = plan_of(*image, "launch.gpus_per_node=1", "launch.container_runtime=apptainer", then=["report {run}"])
    exported = next(line for line in commands(submit.script_text(apptainer)) if "BIGTRAIN_PREFIX" in line)
    words = shlex.split(shlex.split(exported)[1].partition("=")[2])
    assert words[:4] == ["apptainer", "exec", "--nv", "--bind"]
    assert words[-1] == "/images/train one.sqsh"
    follower = shlex.split(commands(submit.script_text(apptainer))[-1])
    assert follower == ["exec", *words, "python3", "-m", "bigtrain", "report", f"{tmp_path}/run"]


def test_what_follows_waits_for_the_one_before_on_one_node(plan_of: PlanOf, tmp_path: Path) -> None:
    then = ["convert to-hf {run} '{run}/a folder'", "report {run}"]
    plan = plan_of("launch.nodes=2", "launch.spare_nodes=1", "launch.partition=main", then=then)
    _, convert, _ = submit.script_text(plan).split("#!/bin/bash\n")[1:]
    got = options(convert)
    assert (got["nodes"], got["dependency"], got["partition"]) == ("1", "afterok:ID", "main")
    words = shlex.split(commands(convert)[-1])
    assert words[1:] == [
        *(sys.executable, "-m", "bigtrain", "convert", "to-hf"),
        *(f"{tmp_path}/run", f"{tmp_path}/run/a folder"),
    ]


def test_a_sweep_is_an_array_over_every_combination(plan_of: PlanOf, tmp_path: Path) -> None:
    plan = plan_of("checkpoint.dir=s3://bucket/run", sweeps=["optimizer.lr=1e-4,3e-4", "schedule.name=cosine,constant"])
    assert list(plan.runs) == [
        "optimizer.lr=0.0001,schedule.name=cosine",
        "optimizer.lr=0.0001,schedule.name=constant",
        "optimizer.lr=0.0003,schedule.name=cosine",
        "optimizer.lr=0.0003,schedule.name=constant",
    ]
    last = plan.runs["optimizer.lr=0.0003,schedule.name=constant"]
    assert (last.optimizer.lr, last.schedule.name) == (3e-4, "constant")
    assert last.training.output_dir == f"{tmp_path}/run/optimizer.lr=0.0003,schedule.name=constant"
    assert last.checkpoint.dir == "s3://bucket/run/optimizer.lr=0.0003,schedule.name=constant"
    text = submit.script_text(plan)
    assert options(text)["array"] == "0-3%4"
    assert options(text)["output"] == f"{tmp_path}/run/slurm/%A_%a.out"


def test_each_task_of_an_array_takes_its_own_configuration(plan_of: PlanOf, tmp_path: Path) -> None:
    """The script's own lines, with the last one's `exec bash` turned into `echo`."""
    text = submit.script_text(plan_of(sweeps=["training.seed=1,2"]))
    echoing = text.replace("exec bash", "echo")
    said = subprocess.run(
        ["bash", "-c", echoing], env={"SLURM_ARRAY_TASK_ID": "1"}, capture_output=True, text=True, check=True
    ).stdout
    assert said.split()[-1].startswith(f"{tmp_path}/run/training.seed=2/slurm/config-")


@pytest.mark.parametrize(
    ("overrides", "sweeps", "then", "said"),
    [
        ([], ["optimizer.lr"], [], "--sweep 'optimizer.lr' is not of the form"),
        ([], ["optimizer.lr="], [], "is not of the form"),
        ([], ["optimizer.lr=1e-4,0.0001"], [], "two runs would be named optimizer.lr=0.0001"),
        ([], ["training.seed=1,2", "training.seed=3"], [], "a key is given twice"),
        ([], ["launch.nodes=1,2"], [], "--sweep launch.nodes: the tasks of an array are alike"),
        ([], ["training.output_dir=a,b"], [], "has a folder of its own already"),
        ([], ["training.seed=1,2"], ["report {run}"], "--then follows one run"),
        (["launch.chain=true"], ["training.seed=1,2"], [], "--sweep cannot be had with launch.chain"),
        (["launch.chain=true"], [], ["report {run}"], "--then cannot be had with launch.chain"),
        (["launch.sbatch={time: '1'}"], [], [], "launch.sbatch.time: this is said with launch.time"),
        (["launch.sbatch={output: x}"], [], [], "launch.sbatch.output: a run relies on its own"),
    ],
)
def test_what_cannot_be_submitted(
    plan_of: PlanOf, overrides: list[str], sweeps: list[str], then: list[str], said: str
) -> None:
    with pytest.raises(LaunchError, match=said.replace("(", r"\(").replace("{", r"\{")):
        submit.script_text(plan_of(*overrides, sweeps=sweeps, then=then))


def test_every_run_of_a_sweep_is_validated_and_named(plan_of: PlanOf) -> None:
    with pytest.raises(ConfigError, match=r"^parallel\.tensor=4: "):
        plan_of("launch.processes_per_node=2", sweeps=["parallel.tensor=1,4"])


def test_a_layout_that_does_not_fit_the_nodes(plan_of: PlanOf) -> None:
    with pytest.raises(ConfigError, match="does not make world size 6"):
        plan_of("launch.nodes=2", "launch.processes_per_node=3", "parallel.tensor=4")


def test_data_that_is_not_seen_from_here(plan_of: PlanOf, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.train: .*--no-check-files"):
        submit.check_files(plan_of(f"data.train={tmp_path / 'nothing'}"))


def test_no_slurm_here(plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="there is no Slurm here"):
        submit.check_slurm(plan_of())
    demo = Path(__file__).parents[2] / "configs/runs/demo.yaml"
    command = [sys.executable, "-m", "bigtrain", "submit", str(demo)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no Slurm here: sbatch is not in PATH. Submit from a login node")


@pytest.mark.parametrize(
    ("words", "processes"),
    [(["launch.gpus_per_node=2"], 2), (["launch.gpus_per_node=2", "launch.processes_per_node=1"], 1), ([], 1)],
)
def test_the_number_of_processes_that_was_validated_is_kept(plan_of: PlanOf, words: list[str], processes: int) -> None:
    assert plan_of(*words).config.launch.processes_per_node == processes
    assert plan_of("parallel.tensor=2", "launch.nodes=2").config.launch.processes_per_node == 1


def test_what_is_kept_reads_back_as_what_was_planned(plan_of: PlanOf, tmp_path: Path) -> None:
    config = plan_of("optimizer.lr=1e-4").config
    kept = tmp_path / "kept.yaml"
    kept.write_text(to_yaml(config))
    assert load_config(kept) == config


def test_a_job_that_is_submitted_from_within_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sbatch`, here one that shows its environment, would hand on what belongs to that other."""
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\nenv > $1\necho Submitted batch job 17\n")
    sbatch.chmod(0o755)
    for name, value in {"SLURM_JOB_ID": "9", "SLURM_STEP_ID": "0", "RANK": "1", "SLURM_CONF": "here"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    made = batch.script(LaunchConfig(), tmp_path / "slurm", "run", processes=1)
    job_id, script = made.submit_command("true")
    names = {line.partition("=")[0] for line in script.read_text().splitlines()}
    assert job_id == "17"
    assert "SLURM_CONF" in names
    assert not {"SLURM_JOB_ID", "SLURM_STEP_ID", "RANK"} & names
