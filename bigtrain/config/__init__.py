"""The configuration: what may be said (`schema`), how it is read (`load`), what can work (`validate`).

Nothing here imports torch, so that a mistake in a configuration is told in well under a second.
"""

from bigtrain.config.load import load_config, parse_config, to_yaml
from bigtrain.config.model import ModelConfig
from bigtrain.config.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    LoggingConfig,
    OptimizerConfig,
    ParallelConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainingConfig,
)
from bigtrain.config.validate import data_parallel_size, exchanges_heads, micro_batches, validate

__all__ = [
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "LoggingConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "ScheduleConfig",
    "TokenizerConfig",
    "TrainingConfig",
    "data_parallel_size",
    "exchanges_heads",
    "load_config",
    "micro_batches",
    "parse_config",
    "to_yaml",
    "validate",
]
