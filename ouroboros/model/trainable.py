"""Which parts of a converted model train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ouroboros.errors import ConfigError

if TYPE_CHECKING:
    from ouroboros.model.modeling import OuroborosForCausalLM

CODA_CHOICES = ("frozen", "norms", "full")
RECURRENT_CHOICES = ("frozen", "full")


def mark_trainable(model: OuroborosForCausalLM, coda: str, recurrent: str) -> None:
    """Freezes the base; Controller, gate, step norms and bridge train, and what is named.

    Args:
        model: its parameters are marked.
        coda: what of the last layers trains too: `frozen` nothing, `norms` their RMSNorms and the
            final one, `full` all their weights and the final norm.
        recurrent: what of the looped layers themselves trains: `frozen` nothing, `full` all.

    Raises:
        ConfigError: a choice is none of these.
    """
    for name, given, allowed in (
        ("coda", coda, CODA_CHOICES),
        ("recurrent", recurrent, RECURRENT_CHOICES),
    ):
        if given not in allowed:
            known = ", ".join(allowed)
            raise ConfigError(f"{name}={given!r} is unknown", f"choose one of {known}")
    model.requires_grad_(False)
    loop = model.recurrent
    for module in (loop.controller, loop.norm, loop.gate, model.bridge):
        if module is not None:
            module.requires_grad_(True)
    if recurrent == "full":
        loop.layers.requires_grad_(True)
    if coda != "frozen":
        for name, parameter in model.coda.named_parameters():
            parameter.requires_grad_(coda == "full" or "norm" in name)
        model.norm.requires_grad_(True)
