"""The prelude alone: the state behind it depends on the text and on nothing that trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ouroboros.model.cache import CACHE
from ouroboros.model.generation import count_positions
from ouroboros.model.pooling import describe_sequences

if TYPE_CHECKING:
    from ouroboros.model.modeling import OuroborosForCausalLM


@torch.no_grad()
def run_prelude(
    model: OuroborosForCausalLM,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns what the prelude leaves, `[batch, seq, hidden]`, in the model's type.

    `forward(prelude_state=...)` with the same positions goes on from there, to the same bits as a
    call with the tokens.

    Args:
        model: its embedding and prelude are run.
        input_ids: int64 `[batch, seq]`.
        position_ids: int64 `[batch, seq]`; positions that restart at 0 are packed documents.
    """
    batch, length = input_ids.shape
    device = input_ids.device
    sequences = describe_sequences(batch, length, 0, None, position_ids, device)
    if position_ids is None:
        position_ids = count_positions(None, 0, batch, length, device)
    hidden: torch.Tensor = model.embed_tokens(input_ids)
    layer_inputs = model.layer_inputs(hidden, position_ids, sequences)
    for layer in model.prelude:
        hidden = layer(hidden, **{CACHE: None}, **layer_inputs)
    return hidden
