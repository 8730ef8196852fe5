"""Which parts of a converted model train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ouroboros.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from ouroboros.model.modeling import OuroborosForCausalLM

CODA_CHOICES = ("frozen", "norms", "lora", "full")
RECURRENT_CHOICES = ("frozen", "lora", "full")
EMBEDDING_CHOICES = ("frozen", "full")
# Of these parameters of a layer the names hold one: norms by themselves, adapters by PEFT.
_PARTS = {"frozen": (), "norms": ("norm",), "lora": ("norm", ".lora_"), "full": ("",)}


def mark_trainable(model: OuroborosForCausalLM, coda: str, recurrent: str, embedding: str) -> None:
    """Freezes the base; what modulates, gate, step norms and bridge train, and what is named.

    Args:
        model: its parameters are marked.
        coda: what of the last layers trains too: `frozen` nothing, `norms` their RMSNorms and the
            final one, `lora` these and the adapters that `ouroboros.training.adapters` put in,
            `full` all their weights and the final norm.
        recurrent: what of the looped layers themselves trains: `frozen` nothing, `lora` their
            RMSNorms and adapters, `full` all of them.
        embedding: `frozen`, or `full` for embedding and LM head, tied or not.

    Raises:
        ConfigError: a choice is none of these.
    """
    for name, given, allowed in (
        ("coda", coda, CODA_CHOICES),
        ("recurrent", recurrent, RECURRENT_CHOICES),
        ("embedding", embedding, EMBEDDING_CHOICES),
    ):
        if given not in allowed:
            known = ", ".join(allowed)
            raise ConfigError(f"{name}={given!r} is unknown", f"choose one of {known}")
    model.requires_grad_(False)
    loop = model.recurrent
    steps = (loop.controller, loop.norm, loop.gate, loop.injection) if loop.layers else ()
    for module in (*steps, model.bridge):
        if module is not None:
            module.requires_grad_(True)
    _mark(loop.layers, recurrent)
    for projections in loop.projections():
        for one in projections.values():
            if one.free:
                one.lora_a.requires_grad_(True)
                one.lora_b.requires_grad_(True)
    _mark(model.coda, coda)
    model.norm.requires_grad_(coda != "frozen")
    for table in (model.embed_tokens, model.lm_head):
        table.requires_grad_(embedding == "full")


def _mark(layers: nn.Module, choice: str) -> None:
    parts = _PARTS[choice]
    for name, parameter in layers.named_parameters():
        parameter.requires_grad_(any(part in name for part in parts))
