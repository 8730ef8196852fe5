"""What a call of the model may be given: every other argument is refused by name, in one line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch

from ouroboros.errors import ConfigError
from ouroboros.model.base_config import is_whole
from ouroboros.model.cache import OuroborosCache
from ouroboros.model.configuration import OuroborosConfig

Depth = int | Sequence[int] | torch.Tensor

LOSS_ARGUMENTS = ("num_items_in_batch",)
"""What transformers' loss takes beside logits and labels."""

# Without effect at these values; transformers and its tokenizers pass them of their own accord.
_IDLE: dict[str, tuple[Any, ...]] = {
    "output_attentions": (None, False),
    "output_router_logits": (None, False),
    "is_causal": (None, True),
    "cache_position": (None,),
}


def check_extras(given: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Returns those of forward's further arguments that the loss takes.

    Raises:
        ConfigError: one is unknown, or asks for what the model does not give.
    """
    loss: dict[str, Any] = {}
    for name, value in given.items():
        if name in LOSS_ARGUMENTS:
            loss[name] = value
        elif name == "output_attentions" and value:
            refuse_attentions()
        elif name == "token_type_ids" and (value is None or not bool(torch.any(value))):
            continue  # one segment, as every decoder has
        elif value is not None and not any(value is idle for idle in _IDLE.get(name, ())):
            near = get_close_matches(name, [*known, *LOSS_ARGUMENTS], n=1)
            cure = f"did you mean {near[0]}?" if near else "leave it out"
            raise ConfigError(f"the model takes no argument {name}", cure)
    return loss


def check_backprop_steps(wanted: Any, steps: int) -> int:
    """Returns through how many of the last of `steps` steps gradients go back.

    Raises:
        ConfigError: `wanted` is neither None nor a whole number above 0.
    """
    if wanted is None:
        return steps
    if not is_whole(wanted) or wanted < 1:
        raise ConfigError(f"backprop_steps={wanted!r:.80} is no number of steps", "give 1 or more")
    return min(int(wanted), steps)


def one_input(**given: Any) -> Any:
    """Returns the one input that a call is given.

    Args:
        given: `input_ids`, `inputs_embeds` and `prelude_state`, each None where it is not given.

    Raises:
        ConfigError: none or more than one is given.
    """
    found = [name for name, value in given.items() if value is not None]
    if len(found) != 1:
        raise ConfigError(
            f"the model takes exactly one of input_ids, inputs_embeds and prelude_state, not "
            f"{' and '.join(found) or 'none'}",
            "give one of them",
        )
    return given[found[0]]


def refuse_prelude_cache(use_cache: bool | None, past: OuroborosCache | None) -> None:
    """Refuses a cache beside `prelude_state`.

    Raises:
        ConfigError: one is given or asked for.
    """
    if use_cache or past is not None:
        raise ConfigError(
            "a prelude_state has no cache: keys and values of the prelude are not in it",
            "pass use_cache=False, or input_ids",
        )


def refuse_attentions() -> None:
    """Refuses `output_attentions`.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(
        "output_attentions is not built: a looped layer has one set of weights a step",
        "ask for output_hidden_states, or leave it False",
    )


def check_cache(cache: Any) -> None:
    """Refuses a cache that has no slots for the steps.

    Raises:
        ConfigError: `cache` is neither None nor an `OuroborosCache`.
    """
    if cache is not None and not isinstance(cache, OuroborosCache):
        raise ConfigError(
            f"past_key_values is a {type(cache).__name__}, and only an OuroborosCache has slots "
            "for the steps",
            "leave it out, a call with use_cache=True returns one",
        )


def one_cache(past_key_values: Any, cache: Any) -> Any:
    """Returns the cache that was given by either of its names.

    Raises:
        ConfigError: two different ones were given, or one that has no slots for the steps.
    """
    if past_key_values is not None and cache is not None and cache is not past_key_values:
        raise ConfigError("past_key_values and cache are two names of one thing", "give one")
    given = cache if past_key_values is None else past_key_values
    check_cache(given)
    return given


def check_shapes(
    batch: int,
    new: int,
    past: int,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
) -> None:
    """Checks mask and positions against B rows of P past and S new tokens.

    Raises:
        ConfigError: there is no token, or a shape is not `[B, P+S]` or `[B, S]`.
    """
    if not batch or not new:
        raise ConfigError(
            f"the input has {batch} rows of {new} tokens", "give at least one of each"
        )
    if attention_mask is not None and tuple(attention_mask.shape) != (batch, past + new):
        raise ConfigError(
            f"attention_mask has shape {list(attention_mask.shape)}",
            f"give [{batch}, {past + new}]: "
            f"1 for each of the {past} cached and {new} new tokens that counts, 0 for padding",
        )
    if position_ids is not None and tuple(position_ids.shape) not in ((batch, new), (1, new)):
        raise ConfigError(
            f"position_ids has shape {list(position_ids.shape)}",
            f"give [{batch}, {new}], one for each new token, or leave it out",
        )


def check_logit_index(
    batch: int, logit_index: torch.Tensor | None, has_labels: bool, logits_to_keep: Any
) -> None:
    """Checks which positions' logits are asked for.

    Raises:
        ConfigError: `logit_index` is not `[B, K]`, or a loss is to be had of a part of the logits.
    """
    if logit_index is not None and (logit_index.dim() != 2 or logit_index.shape[0] != batch):
        raise ConfigError(
            f"logit_index has shape {list(logit_index.shape)}",
            f"give [{batch}, K], K positions a row",
        )
    keeps_all = isinstance(logits_to_keep, int) and logits_to_keep == 0
    if has_labels and (logit_index is not None or not keeps_all):
        raise ConfigError("labels need all logits", "leave out logit_index and logits_to_keep")


def check_attention(name: str | None) -> None:
    """Refuses attention over a paged cache.

    Raises:
        ConfigError: `name` is such an implementation.
    """
    if name is not None and name.startswith("paged|"):
        raise ConfigError(f"attn_implementation={name!r} is not built", "choose sdpa or eager")


def check_continuation(cache: OuroborosCache, batch: int, steps: int, layers: int) -> None:
    """Checks that a filled cache can be gone on from with `batch` rows and `steps` steps.

    Args:
        cache: the cache.
        batch: rows of the call.
        steps: of the call.
        layers: that a step runs.

    Raises:
        ConfigError: it holds other rows, or fewer steps.
    """
    if not cache.get_seq_length():
        return
    rows = cache.layers[0].keys.shape[0]
    if rows != batch:
        raise ConfigError(
            f"past_key_values holds {rows} rows and the input {batch}", "give as many"
        )
    held = (len(cache.layers) - cache.num_layers) // layers if layers else steps
    if held < steps:
        raise ConfigError(
            f"depth={steps} can't go on from past_key_values of depth {held}",
            "depth stays fixed while a sequence is decoded, so begin again without a cache",
        )


def _plain(value: Any) -> Any:
    # Tensors, arrays and numpy's numbers become Python's, with their kind: 2.0 stays a float.
    return value.tolist() if hasattr(value, "tolist") else value


def depth_of_rows(depth: Any, batch: int, config: OuroborosConfig) -> list[int]:
    """Returns the depths of a call: one for all rows, or one a row.

    Args:
        depth: an int, or a list, tuple, array or tensor of them; the config's where None.
        batch: number of rows B.
        config: knows the model's range.

    Raises:
        ConfigError: an entry is no whole number in 1..max_depth, or there are not 1 or B.
    """
    given = _plain(config.depth if depth is None else depth)
    rows = [_plain(row) for row in given] if isinstance(given, list | tuple) else [given]
    for value in rows:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(
                f"depth={value!r:.80} is no whole number", "give one for all rows, or one a row"
            )
        config.check_depth(value)
    if len(rows) not in (1, batch):
        raise ConfigError(f"depth has {len(rows)} entries for {batch} rows", "give 1 or all")
    return rows


def select_positions(
    hidden: torch.Tensor, logit_index: torch.Tensor | None, logits_to_keep: int | torch.Tensor
) -> torch.Tensor:
    """Returns the positions `[B, K, hidden]` of `[B, S, hidden]` whose logits are asked for.

    Args:
        hidden: what enters the LM head.
        logit_index: int64 `[B, K]` positions; None where none are named.
        logits_to_keep: the last so many, or the positions given; 0 keeps all.
    """
    if logit_index is not None:
        index = logit_index[..., None].expand(-1, -1, hidden.shape[-1])
        return hidden.gather(1, index)
    if isinstance(logits_to_keep, int):
        return hidden[:, -logits_to_keep:] if logits_to_keep else hidden
    return hidden[:, logits_to_keep]
