"""The exceptions that BigTrain raises on purpose.

Everything below :class:`UserError` is a mistake that the user can mend: the command line prints its
message alone, without a traceback, and ends with exit code 2. A message names what was given, the
rule, and the remedy, in the words the user typed. Our own invariants are ``assert`` statements.
"""

EXIT_USER_ERROR = 2
EXIT_REQUEUE = 75


class BigTrainError(Exception):
    """Root of the tree; raised directly only for faults that are not the user's."""


class PeerError(BigTrainError):
    """What another rank met, told by a rank that met nothing itself."""


class UserError(BigTrainError):
    """A mistake of the user's: one clear message, exit code 2."""


class ConfigError(UserError):
    """A configuration that cannot be read, or that cannot work."""


class DataError(UserError):
    """A dataset, shard or tokenizer that is missing, damaged or does not fit."""


class CheckpointError(UserError):
    """A checkpoint that is missing, incomplete, damaged or of another model."""


class StorageError(UserError):
    """A checkpoint or a record that cannot be written: the disk is full, or the folder is closed to us."""


class ConversionError(UserError):
    """A model that cannot be converted, or whose conversion failed its verification."""


class LaunchError(UserError):
    """A job that cannot be started, found or told anything: no Slurm, or Slurm refuses."""
