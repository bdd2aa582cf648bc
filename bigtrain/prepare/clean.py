"""Cleaning as a declared pipeline: a recipe becomes stages of datatrove, run here or submitted to Slurm.

Steps that judge a document by itself share a stage. Removing duplicates takes several: all documents are written with
their fingerprints, equal fingerprints are found, and the next stage reads the documents again. Each task of a stage
that has finished leaves a mark, and is not done again when the same command is given again.
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import ExactDedupFilter, ExactDedupSignature, ExactFindDedups, MinhashDedupFilter
from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupSignature,
)
from datatrove.utils.logging import logger

from bigtrain.errors import DataError
from bigtrain.prepare import clean_steps
from bigtrain.prepare.clean_inputs import find_inputs
from bigtrain.prepare.clean_load import differences, fingerprint, resolved
from bigtrain.prepare.clean_recipe import Decontaminate, ExactDedup, MinhashDedup, Recipe
from bigtrain.prepare.clean_report import Origin, finish


@dataclass
class Stage:
    """Parts of datatrove that run as one, in `tasks` tasks."""

    name: str
    tasks: int
    pipeline: list[PipelineStep] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    """For each part the recipe's step whose counts it has, or nothing."""

    def add(self, part: PipelineStep, label: str = "") -> None:
        """Append a part."""
        self.pipeline.append(part)
        self.labels.append(label)


@dataclass(frozen=True)
class Cleaned:
    """What `clean` has done."""

    output: Path
    counts: list[dict[str, Any]] | None
    """For each step what came in and what was kept; None where jobs were submitted."""
    jobs: tuple[str, ...] = ()
    """Slurm's numbers of the jobs, in their order."""


def clean(recipe: Recipe, on_stage: Callable[[int, int, str], None] = lambda *_: None) -> Cleaned:
    """Carry out `recipe`, or what is left of it if it was interrupted; on Slurm submit that.

    `OUTPUT/documents` gets the shards, `OUTPUT/report.html` and `report.json` tell what each step dropped, and
    `OUTPUT/cleaning.json` (with the recipe's fingerprint) appears last. `on_stage` is told each stage as it begins: its
    number, how many there are, its name.

    Raises:
        DataError: an input, a benchmark or a model cannot be read; `OUTPUT` holds the work of another recipe, or of
            other inputs.
    """
    output = Path(recipe.output).absolute()
    origin = _claim(recipe, output)
    if (output / "cleaning.json").exists():
        return Cleaned(output, json.loads((output / "cleaning.json").read_text(encoding="utf-8"))["counts"])
    stages = plan(recipe, output, origin)
    logger.remove()  # what datatrove tells is in OUTPUT/tasks/logs
    if recipe.executor.kind == "slurm":
        chain = _slurm(recipe, stages, output)
        chain[-1].run()
        return Cleaned(output, None, tuple(str(job.job_id) for job in chain if job.job_id not in (None, -1)))
    before = signal.signal(signal.SIGTERM, partial(_stop, os.getpid()))
    try:
        for number, stage in enumerate(stages, 1):
            on_stage(number, len(stages), stage.name)
            cores = recipe.workers or len(os.sched_getaffinity(0))
            with contextlib.redirect_stderr(_nowhere()):
                _Local(stage, min(cores, stage.tasks), _logs(output, number, stage)).run()
    finally:
        signal.signal(signal.SIGTERM, before)
    return Cleaned(output, json.loads((output / "cleaning.json").read_text(encoding="utf-8"))["counts"])


def plan(recipe: Recipe, output: Path, origin: Origin) -> list[Stage]:
    """The stages of a recipe, in their order, the last of which writes the reports."""
    work = output / "tasks"
    base, lists, files = find_inputs(recipe)
    for kind, names in lists.items():
        (work / f"{kind}.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    tasks = recipe.tasks or min(len(files), 1000)
    stages = [Stage("read", tasks)]
    paths = {kind: work / f"{kind}.txt" for kind in lists}
    for reader in clean_steps.readers(recipe, base, paths, work / "examples/read"):
        stages[-1].add(reader, "read")
    for step in recipe.steps:
        name = step.step
        examples = clean_steps.Examples(work / "examples" / name, name, recipe.examples)
        if isinstance(step, ExactDedup | MinhashDedup):
            folder = work / "stages" / name
            stages[-1].add(clean_steps.between(folder / "documents", write=True))
            if isinstance(step, ExactDedup):
                search, dedup_filter = _exact(step, stages[-1], folder, examples)
            else:
                search, dedup_filter = _minhash(step, recipe.language, stages[-1], folder, examples)
            stages += [*search, Stage(name, tasks)]
            stages[-1].add(clean_steps.between(folder / "documents", write=False))
            stages[-1].add(dedup_filter, name)
        else:
            stages[-1].add(clean_steps.step(step, recipe, work / "benchmarks", examples), name)
    stages[-1].add(clean_steps.writer(recipe, output / "documents"), "written")
    logs = [(_logs(output, number, stage), stage.labels) for number, stage in enumerate(stages, 1)]
    stages.append(Stage("report", 1, [_Finish(output, logs, origin, recipe.examples, recipe.keep_intermediate)], [""]))
    return stages


def _exact(
    step: ExactDedup, before: Stage, folder: Path, examples: clean_steps.Examples
) -> tuple[list[Stage], PipelineStep]:
    """Fingerprint in the stage before; the stage that finds equal ones; what drops all but one."""
    config = ExactDedupConfig(content_getter=_text, hash_config=clean_steps.HASHES)
    found = str(folder / "duplicates")
    before.add(ExactDedupSignature(str(folder / "fingerprints"), config, finder_workers=step.finders))
    find = Stage("exact_dedup-find", step.finders, [ExactFindDedups(str(folder / "fingerprints"), found, config)], [""])
    return [find], ExactDedupFilter(found, config, examples)


def _minhash(
    step: MinhashDedup, language: str, before: Stage, folder: Path, examples: clean_steps.Examples
) -> tuple[list[Stage], PipelineStep]:
    """Fingerprint in the stage before; the stages that find pairs and join them; what drops all but one."""
    config = MinhashConfig(**step.model_dump(exclude={"step"}), hash_config=clean_steps.HASHES)
    signed, pairs, groups = (str(folder / name) for name in ("fingerprints", "pairs", "duplicates"))
    before.add(MinhashDedupSignature(signed, config, language))
    buckets = Stage("minhash_dedup-pairs", step.num_buckets, [MinhashDedupBuckets(signed, pairs, config=config)], [""])
    cluster = Stage("minhash_dedup-groups", 1, [MinhashDedupCluster(pairs, groups, config)], [""])
    return [buckets, cluster], MinhashDedupFilter(groups, examples)


def _text(document: Document) -> str:
    return document.text


class _Finish(PipelineStep):
    """The last stage: counts and examples of all stages become the reports."""

    type = "report"
    name = "report"

    def __init__(self, *given: Any) -> None:
        super().__init__()
        self.given = given

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        finish(*self.given)
        yield from ()


# --- where it runs ---------------------------------------------------------------------------------------------------


class _Local(LocalPipelineExecutor):
    """datatrove's executor on this machine, which logs to its files alone.

    Workers are forked, with all that is imported here: a fresh process would import spaCy again in every stage.
    """

    def __init__(self, stage: Stage, workers: int, logs: Path) -> None:
        super().__init__(stage.pipeline, stage.tasks, workers, str(logs), start_method="fork")

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        with contextlib.redirect_stderr(_nowhere()):
            return super()._run_for_rank(rank, local_rank, node_rank)


def _stop(starter: int, number: int, _: Any) -> None:
    if os.getpid() != starter:
        signal.signal(number, signal.SIG_DFL)  # a worker, which has this handler from us, ends as it always did
        os.kill(os.getpid(), number)
    sys.exit(128 + number)  # by the road that ends workers too


@cache
def _nowhere() -> TextIO:
    """A file that stays open: datatrove's logger keeps it."""
    return Path(os.devnull).open("w", encoding="utf-8")


def _slurm(recipe: Recipe, stages: list[Stage], output: Path) -> list[SlurmPipelineExecutor]:
    site = recipe.executor
    chain: list[SlurmPipelineExecutor] = []
    for number, stage in enumerate(stages, 1):
        chain.append(
            SlurmPipelineExecutor(
                stage.pipeline,
                stage.tasks,
                site.time,
                site.partition,
                cpus_per_task=site.cpus_per_task,
                mem_per_cpu_gb=site.mem_per_cpu_gb,
                workers=recipe.workers or -1,
                job_name=f"clean-{stage.name}",
                qos=site.qos,
                env_command=site.env_command or f'export PATH="{Path(sys.executable).parent}:$PATH"',
                sbatch_args=dict(site.sbatch_args),
                max_array_size=site.max_array_size,
                depends=chain[-1] if chain else None,
                logging_dir=str(_logs(output, number, stage)),
            )
        )
    return chain


def _logs(output: Path, number: int, stage: Stage) -> Path:
    return output / "tasks/logs" / f"{number:02d}-{stage.name}"


def _claim(recipe: Recipe, output: Path) -> Origin:
    """Make the folder, or see that it is this recipe's."""
    own = fingerprint(recipe)
    _, _, files = find_inputs(recipe)
    mine = {
        "fingerprint": own,
        "datatrove": version("datatrove"),
        "recipe": resolved(recipe),
        "inputs": files,
    }
    mark = output / "tasks/recipe.json"
    if mark.exists():
        other = json.loads(mark.read_text(encoding="utf-8"))
        if other["inputs"] != files and other["fingerprint"] == own:
            raise DataError(f"{output}: the inputs are not those that this was begun with; give another output")
        if other["fingerprint"] != own:
            changed = list(differences(json.loads(json.dumps(mine["recipe"])), other["recipe"]))
            what = f"it differs in {', '.join(changed)}" if changed else "a benchmark, a model or a package has changed"
            raise DataError(f"{output} holds the work of another recipe: {what}. Give another output, or remove it")
        return Origin(**other)
    if output.exists() and {path.name for path in output.iterdir()} - {"tasks"}:
        raise DataError(f"{output} is there already and holds no cleaning; give another output")
    return _begin(recipe, output, mine)


def _begin(recipe: Recipe, output: Path, mine: dict[str, Any]) -> Origin:
    work = output / "tasks"
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{output}: cannot be made ({error.strerror})") from error
    benchmarks: dict[str, dict[str, int]] = {}
    try:
        for step in recipe.steps:
            if isinstance(step, Decontaminate):
                benchmarks = clean_steps.index_benchmarks(step, recipe.language, work / "benchmarks")
    except DataError:
        for file in (work / "benchmarks").glob("*"):
            file.unlink()
        for folder in (work / "benchmarks", work, output):
            if folder.exists():
                folder.rmdir()
        raise
    origin = Origin(**mine, benchmarks=benchmarks)
    waiting = work / ".recipe.json"
    waiting.write_text(json.dumps(vars(origin), indent=1, ensure_ascii=False), encoding="utf-8")
    waiting.replace(work / "recipe.json")
    return origin
