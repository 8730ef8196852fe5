"""Ouroboros: fold the middle of a pretrained LLM into one layer, looped `depth` times.

Importing this package is cheap; torch and transformers are imported with the first name used.
It is all that transformers' Auto classes need to know the model, before or after transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ouroboros.model.registration import register_with_transformers

if TYPE_CHECKING:
    from ouroboros.checkpoint import load_checkpoint, save_checkpoint
    from ouroboros.conversion.convert import convert
    from ouroboros.conversion.options import ConvertOptions
    from ouroboros.delta.options import DeltaOptions
    from ouroboros.delta.restore import restore_delta
    from ouroboros.delta.save import save_delta
    from ouroboros.model.configuration import OuroborosConfig
    from ouroboros.model.modeling import OuroborosForCausalLM
    from ouroboros.training.recipe import TrainOptions

__version__ = "0.1.0"

__all__ = [
    "ConvertOptions",
    "DeltaOptions",
    "OuroborosConfig",
    "OuroborosForCausalLM",
    "TrainOptions",
    "__version__",
    "convert",
    "load_checkpoint",
    "restore_delta",
    "save_checkpoint",
    "save_delta",
]

_HOMES = {
    "ConvertOptions": "ouroboros.conversion.options",
    "DeltaOptions": "ouroboros.delta.options",
    "OuroborosConfig": "ouroboros.model.configuration",
    "OuroborosForCausalLM": "ouroboros.model.modeling",
    "TrainOptions": "ouroboros.training.recipe",
    "convert": "ouroboros.conversion.convert",
    "load_checkpoint": "ouroboros.checkpoint",
    "restore_delta": "ouroboros.delta.restore",
    "save_checkpoint": "ouroboros.checkpoint",
    "save_delta": "ouroboros.delta.save",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'ouroboros' has no attribute {name!r}")
    return getattr(import_module(home), name)


register_with_transformers()
