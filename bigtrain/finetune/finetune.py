"""A run of fine-tuning: what differs from pretraining."""

from functools import partial
from pathlib import Path
from typing import Any

from bigtrain.checkpoint import catalog, store
from bigtrain.checkpoint.catalog import Checkpoint
from bigtrain.checkpoint.find import BEST
from bigtrain.config import Config
from bigtrain.evaluate.score import score
from bigtrain.finetune.batches import TaskBatches
from bigtrain.finetune.decode import as_predictions, decode
from bigtrain.finetune.inputs import TaskInputs, open_task, resolved
from bigtrain.finetune.judged import best_row, exhausted, judged
from bigtrain.finetune.predict import outputs
from bigtrain.models.heads import HEAD, POOLER, build_for_task
from bigtrain.parallel import topology
from bigtrain.parallel.engine import Engine
from bigtrain.parallel.topology import Layout
from bigtrain.training.loop import Run, publish
from bigtrain.training.pretrain import Purpose, pretrain
from bigtrain.training.validation import mean_losses


def finetune(config: Config) -> int:
    """Start or continue the run in `training.output_dir`; every process of the world calls it.

    Returns:
        0 when training has ended, 75 when the run was asked to stop and waits to be continued.

    Raises:
        UserError: On every rank, before the first step.
    """
    return pretrain(config, PURPOSE)


def task_engine(config: Config, layout: Layout, inputs: TaskInputs) -> Engine:
    """The model with the task's head; a best checkpoint of steps that are yet to come is forgotten."""
    if layout.rank == 0:
        step = inputs.checkpoint.state.step if inputs.checkpoint else 0
        catalog.forget_after(Path(config.training.output_dir) / BEST, step)
    return Engine(config, layout, partial(build_for_task, labels=len(inputs.labels)))


def load_below_head(initial: Checkpoint, engine: Engine) -> None:
    """Fill the engine with the weights of `checkpoint.initialize_from`, which has no such head. All ranks call it."""
    pools = initial.model.get("add_pooling_layer", False)
    store.load_weights(initial, engine, but=[HEAD] if pools else [HEAD, POOLER])


def judge(run: Run) -> bool:
    """Measure the model on the held-out examples, and keep it if it is the best so far.

    Returns:
        Whether `finetune.patience` is exhausted.
    """
    inputs, config, step = run.inputs, run.config, run.state.step
    if inputs.validation is None:
        return False
    feed = partial(run.watchdog.feed, f"a batch of the validation after step {step}", step)
    found = _measure(run, feed)
    rows = [*judged(run.output_dir), found] if found else []
    is_best = topology.any_rank(found is not None and _is_best(run, rows))
    if is_best:
        run.watchdog.feed(f"the best checkpoint, of step {step}", step, long=True)
        best, origin = run.output_dir / BEST, run.saver.origin
        store.save(best, run.engine, run.state, inputs.data_identity, keep_last=1, origin=origin)
    run.event("evaluate", **{**(found or {}), "best": is_best})
    if found:
        publish(run, found)
        figures = ", ".join(f"{name} {value:.4f}" for name, value in found.items() if name != "step")
        run.progress.say(f"step {step}: {figures}{' (the best so far)' if is_best else ''}")
    return topology.any_rank(exhausted(config, rows))


def _is_best(run: Run, rows: list[dict[str, Any]]) -> bool:
    """Whether the last of the validations is better than that of the checkpoint that is kept, if there is one: what was
    the best may have gone when the run was set back."""
    kept = catalog.complete(run.output_dir / BEST)
    steps = {int(path.name.removeprefix("step-")) for path in kept}
    return best_row(run.config, [row for row in rows if row is rows[-1] or row["step"] in steps]) is rows[-1]


def _measure(run: Run, feed: Any) -> dict[str, Any] | None:
    """The loss and the figures of the held-out examples, on rank 0."""
    inputs, config = run.inputs, run.config
    if config.finetune.task == "sequence_to_sequence":
        source = TaskBatches(inputs.validation, config, shuffle=False)
        losses = mean_losses(run.engine, config, source, len(inputs.validation), feed)
        return {"step": run.state.step, **losses} if run.is_first else None
    found = outputs(run.engine, config, inputs.validation, feed)
    if found is None:
        return None
    rows = decode(config, inputs.validation, found.of_items, inputs.labels)
    predictions = as_predictions(config, rows, run.output_dir.name)
    assert predictions is not None, "labelled examples were read"
    figures = {name: value.value for name, value in score(predictions, seed=None).scores.items()}
    kept = {name: figures[name] for name in _KEPT if name in figures}
    return {"step": run.state.step, "validation_loss": found.loss} | {f"validation_{k}": v for k, v in kept.items()}


_KEPT = ("accuracy", "f1", "exact_match", "pearson", "spearman", "rmse")


def _is_done(config: Config, inputs: TaskInputs) -> bool:
    resumed = inputs.checkpoint
    if resumed is None:
        return False
    rows = [row for row in judged(Path(config.training.output_dir)) if row["step"] <= resumed.state.step]
    return resumed.state.step == config.training.steps or exhausted(config, rows)


PURPOSE = Purpose(
    open=open_task,
    engine=task_engine,
    begin=load_below_head,
    samples=lambda config, inputs: TaskBatches(inputs.train, config, shuffle=True),
    validate=judge,
    settled=resolved,
    is_done=_is_done,
)
