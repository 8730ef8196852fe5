"""The errors of the training core; `runtime.errors` has the tree of all."""

from runtime.errors import CheckpointError as CheckpointError
from runtime.errors import ConfigError as ConfigError
from runtime.errors import DataError as DataError
from runtime.errors import OuroError
from runtime.errors import SourceError as SourceError
from runtime.errors import TrainingError as TrainingError

OuroborosError = OuroError
"""The name that the training core's users have caught so far."""
