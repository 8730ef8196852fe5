"""What `generate()` needs of a looped model: depths, positions, its cache, and what it refuses.

transformers' own extension points: methods that its models override where they differ.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import GenerationMode

from ouroboros.errors import ConfigError
from ouroboros.model.arguments import check_cache, check_shapes, depth_of_rows, refuse_attentions
from ouroboros.model.cache import CACHE, OuroborosCache
from ouroboros.model.configuration import OuroborosConfig
from ouroboros.model.halters import AUTO, check_threshold
from runtime.depths import describe_untrained, find_untrained

_MODES = (
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
)

LIBRARIES = {"ouroboros", "torch", "transformers"}
"""Whose frames are passed over where a warning names the line that it is about."""


def count_positions(
    attention_mask: torch.Tensor | None, past: int, batch: int, new: int, device: torch.device
) -> torch.Tensor:
    """Returns int64 positions `[B, S]` counted over the valid ones of a mask `[B, P+S]`."""
    if attention_mask is None:
        return torch.arange(past, past + new, device=device).expand(batch, new)
    positions = attention_mask.long().cumsum(-1) - 1
    return positions.clamp(min=0)[:, past:].to(device)


class LoopedGenerationMixin(GenerationMixin):
    """`generate()` of a looped model."""

    config: OuroborosConfig

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, **kwargs: Any
    ) -> tuple[GenerationConfig, dict[str, Any]]:
        wanted = kwargs.get("cache_implementation")
        config, inputs = super()._prepare_generation_config(generation_config, **kwargs)
        _refuse_mode(config.get_generation_mode())
        kind = wanted or config.cache_implementation
        if kind not in (None, "dynamic"):
            raise ConfigError(
                f"cache_implementation={kind!r} is not built: only an OuroborosCache has slots "
                "for the steps",
                "leave it out, one is made",
            )
        config.cache_implementation = None
        if config.output_attentions:
            refuse_attentions()
        if config.is_assistant:
            raise ConfigError(
                "a looped model can't be the assistant_model: its cache can't be cropped",
                "choose another, or none",
            )
        if config.token_healing:
            raise ConfigError("token_healing is not built for a looped model", "leave it out")
        # A config with a field `depth` takes the argument `depth` too, as any generation setting.
        if getattr(config, "depth", None) is not None:
            inputs["depth"] = config.depth
        return config, inputs

    def _validate_generation_mode(
        self, generation_mode: GenerationMode, generation_config: Any, mode_kwargs: dict[str, Any]
    ) -> None:
        # Only here is it known whether an assistant model was given.
        _refuse_mode(generation_mode)
        super()._validate_generation_mode(generation_mode, generation_config, mode_kwargs)

    def _prepare_model_inputs(
        self, inputs: torch.Tensor | None, bos_token_id: Any, model_kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, str, dict[str, Any]]:
        found: tuple[torch.Tensor, str, dict[str, Any]] = super()._prepare_model_inputs(
            inputs, bos_token_id, model_kwargs
        )
        batch, new = found[0].shape[:2]
        mask, cache = model_kwargs.get("attention_mask"), model_kwargs.get(CACHE)
        check_cache(cache)
        held = cache.get_seq_length() if cache is not None else 0
        # Beside a cache the whole text may be given, or what is new of it; the mask covers it all.
        whole = held and mask is not None and mask.shape[-1] == new
        check_shapes(batch, new, 0 if whole else held, mask, None)
        return found

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]
    ) -> torch.Tensor:
        # Right padding repeats the last valid position, so that the next token counts on from it.
        mask = model_kwargs["attention_mask"]
        batch, length = mask.shape
        return count_positions(mask, 0, batch, length, mask.device)

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        given = model_kwargs.get("inputs_embeds")
        rows: Any = given if given is not None else input_ids
        _choose_threshold(self.config, model_kwargs)
        depths = [self.config.depth]
        if model_kwargs.get("depth") is not None:
            # A tensor of one entry a row is repeated for beams and returned sequences.
            depths = depth_of_rows(model_kwargs["depth"], rows.shape[0], self.config)
            one = len(depths) == 1
            model_kwargs["depth"] = depths[0] if one else torch.tensor(depths, device=rows.device)
        if model_kwargs.get("halt_threshold") is None:
            self._warn_untrained(depths)
        expanded: tuple[torch.Tensor, dict[str, Any]] = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return expanded

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any
    ) -> None:
        cache = model_kwargs.get(CACHE)
        if generation_config.prefill_chunk_size is not None:
            _check_chunks(self.config, model_kwargs)
        if cache is not None:
            super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)
        elif generation_config.use_cache:
            model_kwargs[CACHE] = OuroborosCache(self.config.num_layers)

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        # Chosen on the prompt; from here on the depth is fixed.
        if model_kwargs.pop("halt_threshold", None) is not None:
            model_kwargs["depth"] = outputs.depth_used
            self._warn_untrained(outputs.depth_used.tolist())
        updated: dict[str, Any] = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, **kwargs
        )
        return updated

    def _warn_untrained(self, depths: Iterable[int]) -> None:
        """Warns of depths that were never trained, of each once, as an engine does."""
        trained = self.config.trained_depths
        warned: set[int] = self.__dict__.setdefault("_warned_depths", set())
        if fresh := find_untrained(depths, trained, warned):
            warned.update(fresh)
            told = describe_untrained(fresh, trained)
            warnings.warn(told, UserWarning, stacklevel=_level_of_caller())

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Adds where each row's last valid token is.

        So right-padded prompts generate what they generate alone; transformers by itself reads
        the padding's logits.
        """
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        for name in ("tokenizer", "assistant_tokenizer"):  # for stop strings, not for the model
            inputs.pop(name, None)
        given = inputs.get("inputs_embeds")
        given = given if given is not None else inputs["input_ids"]
        new = given.shape[1]
        if attention_mask is not None and new > 1:
            valid = attention_mask[:, -new:] != 0
            slots = torch.arange(new, device=valid.device)
            inputs["logit_index"] = (slots * valid).argmax(-1, keepdim=True).to(given.device)
            inputs.pop("logits_to_keep", None)
        return inputs

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refuses: a paged cache has no slots for the steps.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "continuous batching is not built for a looped model", "call generate() with a batch"
        )


def _refuse_mode(mode: GenerationMode) -> None:
    if mode not in _MODES:
        raise ConfigError(
            f"generation mode {mode.value} is not built for a looped model",
            "use greedy search, sampling or beams (num_beams, do_sample)",
        )


def _choose_threshold(config: OuroborosConfig, model_kwargs: dict[str, Any]) -> None:
    """Turns `depth="auto"` into the most steps that may be chosen and a threshold."""
    auto = isinstance(model_kwargs.get("depth"), str) and model_kwargs["depth"] == AUTO
    threshold = model_kwargs.get("halt_threshold")
    if not auto and threshold is None:
        return
    if not auto:
        raise ConfigError(
            f"halt_threshold={threshold!r:.60} has no effect at a fixed depth",
            f'pass depth="{AUTO}" with it, or leave it out',
        )
    if model_kwargs.get(CACHE) is not None and model_kwargs[CACHE].get_seq_length():
        raise ConfigError(
            f'depth="{AUTO}" beside a cache: a depth is chosen on the whole prompt and stays fixed',
            "pass the depth that the cache was made with",
        )
    wanted = config.halt_threshold if threshold is None else threshold
    model_kwargs["halt_threshold"] = check_threshold(wanted, config)
    model_kwargs["depth"] = config.halt_depth


def _check_chunks(config: OuroborosConfig, model_kwargs: dict[str, Any]) -> None:
    mask = model_kwargs.get("attention_mask")
    reason, cure = None, "leave it out"
    if config.pooling == "mean":
        reason = "pooling=mean, which averages over the whole prompt"
    elif model_kwargs.get("halt_threshold") is not None:
        reason = f"depth={AUTO}, which is chosen on the whole prompt"
    elif model_kwargs.get("inputs_embeds") is not None:
        reason = "inputs_embeds, which transformers does not split"
    elif mask is not None and bool((mask[:, -1] == 0).any()):
        reason = "right padding, since a row's last token may lie in an earlier chunk"
        cure = "pad left, or leave it out"
    if reason is not None:
        raise ConfigError(f"prefill_chunk_size can't be used with {reason}", cure)


def _level_of_caller() -> int:
    """The `stacklevel` of whoever called into a library of LIBRARIES: how deep that is differs."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in LIBRARIES:
        level, frame = level + 1, frame.f_back
    return level
