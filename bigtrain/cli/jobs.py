"""`bigtrain submit`, and `status`, `stop` and `logs` of what was submitted."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bigtrain.cli.arguments import ConfigFile, Overrides, err, out

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or a sweep's.")]


def submit(
    config: ConfigFile,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the batch script, and submit nothing.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job until it ends, and end as it does.")] = False,
    after: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN|JOB", help="Start when this run or job has succeeded; may be given several times."),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V,V...", help="A job array with one run for each value; several keys: each with each."
        ),
    ] = None,
    then: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COMMAND",
            help="Run this command of bigtrain on one node when the run is done, such as 'report {run}'; "
            "of several each waits for the one before.",
        ),
    ] = None,
    check_files: Annotated[
        bool, typer.Option(help="Open data and checkpoints here first; not where only the compute nodes see them.")
    ] = True,
) -> None:
    """Submit a run to Slurm as the configuration's launch section describes it; prints the job's id."""
    from bigtrain.launch import slurm
    from bigtrain.launch import submit as submission

    plan = submission.plan(config, overrides or [], sweep or [], then or [])
    for words in plan.followers:
        _check_command(words)
    if slurm.has_slurm() or not dry_run:
        submission.check_slurm(plan)
    jobs_before = submission.dependencies(after or [])
    if dry_run:
        out.out(submission.script_text(plan, jobs_before), highlight=False)
        return
    if check_files:
        submission.check_files(plan)
    job, *followers = submission.send(plan, jobs_before)
    out.out(job.id, highlight=False)
    what = f"an array of {len(job.tasks)} runs" if job.tasks else plan.name
    err.print(f"submitted {what} as job {job.id}; bigtrain status {plan.folder}", markup=False)
    for follower in followers:
        err.print(f"then job {follower.id}: bigtrain {follower.command}", markup=False)
    if watch:
        from bigtrain.launch.watch import watch as follow

        sys.exit(follow(plan.folder, err))


def status(
    run: RunFolder,
    watch: Annotated[bool, typer.Option("--watch", help="Until the job ends; ends with its exit code.")] = False,
) -> None:
    """Tell how a run stands: its job, where it waits, step, loss, speed, and what happened last."""
    from bigtrain.launch import watch as shown

    if watch:
        sys.exit(shown.watch(run, out))
    shown.show(run, out)


def stop(
    run: RunFolder,
    wait: Annotated[bool, typer.Option(help="Until it has ended.")] = True,
) -> None:
    """Have a run write a checkpoint and end, for good; one that waits in the queue is taken out of it."""
    from bigtrain.launch.stop import stop as end

    end(run, wait=wait, say=lambda text: err.print(text, markup=False))


def logs(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    rank: Annotated[int | None, typer.Option(help="This rank's log in place of the job's output.", min=0)] = None,
) -> None:
    """Print what the run's newest job has written."""
    from bigtrain.launch.output import read

    for piece in read(run, rank, follow=follow):
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


def _check_command(words: list[str]) -> None:
    """Refuse words that bigtrain would not take: the job that says so may start in days."""
    from bigtrain.cli import app
    from bigtrain.errors import LaunchError

    usage_error: Any = typer.BadParameter.__base__  # click's, or that of typer's own copy of click
    command: Any = typer.main.get_command(app)
    context, name, rest = None, "bigtrain", list(words)
    try:
        while hasattr(command, "resolve_command"):
            context = command.context_class(command, info_name=name, parent=context)
            name, command, rest = command.resolve_command(context, rest or [""])
        command.make_context(name, rest, context)
    except usage_error as error:
        raise LaunchError(f"--then {' '.join(words)!r}: {error.format_message()}") from None
