"""Weights & Biases: one run, from rank 0, under the same id however often it is resumed."""

import netrc
import os
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bigtrain.config import Config


class Dashboard:
    """A W&B run, or nothing where `logging.wandb` is `disabled`."""

    def __init__(self, config: Config, output_dir: Path) -> None:
        self._run = None
        if config.logging.wandb == "disabled":
            return
        import wandb

        mode = config.logging.wandb
        if mode == "auto":
            mode = "online" if logged_in() else "offline"
        self._run = wandb.init(
            project=config.logging.wandb_project,
            entity=config.logging.wandb_entity,
            name=config.logging.run_name or output_dir.name,
            id=_run_id(output_dir),
            resume="allow" if mode == "online" else None,
            mode=mode,
            dir=output_dir,
            config=config.model_dump(mode="json"),
            settings=wandb.Settings(silent=True, console="off"),
        )
        # W&B drops rows whose own step number it has seen; a run resumed after a crash does some steps again.
        self._run.define_metric("*", step_metric="step")

    def log(self, row: dict[str, Any]) -> None:
        """Send a row of metrics; every chart is drawn over its `step`."""
        if self._run is not None:
            self._run.log({k: v for k, v in row.items() if v is not None})

    def close(self, exit_code: int) -> None:
        """Write out what is pending."""
        if self._run is not None:
            self._run.finish(exit_code=exit_code)


def _run_id(output_dir: Path) -> str:
    path = output_dir / "wandb" / "run-id"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(4))
    return path.read_text()


def logged_in() -> bool:
    """Whether W&B has a key, in the environment or where `wandb login` leaves it."""
    if "WANDB_API_KEY" in os.environ:
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
