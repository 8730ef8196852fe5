"""`OuroborosForCausalLM`: prelude, one layer looped `depth` times, coda.

Source: arXiv 2604.02051, section 3; the decoder layers are transformers' own.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ouroboros.cache import OuroborosCache
from ouroboros.configuration import PROJECTIONS, OuroborosConfig
from ouroboros.errors import ConfigError
from ouroboros.modulation import (
    ConstantLinear,
    Controller,
    Gate,
    ModulatedLinear,
    ModulationPort,
    StaticModulation,
    StepNorm,
)
from ouroboros.pooling import POOLING, Sequences, describe_sequences

_CLASS_PREFIX = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}

Depth = int | Sequence[int] | torch.Tensor


def _architecture(model_type: str) -> tuple[type[nn.Module], type[nn.Module], type[nn.Module]]:
    module = import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    prefix = _CLASS_PREFIX[model_type]
    kinds = ("DecoderLayer", "RMSNorm", "RotaryEmbedding")
    layer, norm, rotary = (getattr(module, prefix + kind) for kind in kinds)
    return layer, norm, rotary


class RecurrentStep(nn.Module):
    """One recurrence: pool, modulate, run the layer, normalise, gate."""

    def __init__(self, config: OuroborosConfig, layer: nn.Module) -> None:
        """Wraps a Hugging Face decoder layer; its seven projections become modulated ones."""
        super().__init__()
        self.layer = layer
        self.port = ModulationPort()
        for name in PROJECTIONS:
            owner = layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp
            setattr(owner, name, ModulatedLinear(getattr(owner, name), name, self.port, config))
        dynamic = config.modulation == "controller"
        self.controller = Controller(config) if dynamic else StaticModulation(config)
        self.norm = StepNorm(config)
        self.gate = Gate(config) if config.gate else None
        self.pool = POOLING[config.pooling]

    def projections(self) -> dict[str, ModulatedLinear]:
        """Returns the seven modulated projections by name."""
        modules = (m for m in self.layer.modules() if isinstance(m, ModulatedLinear))
        return {module.name: module for module in modules}

    def forward(
        self,
        hidden: torch.Tensor,
        step: int,
        sequences: Sequences,
        cache: OuroborosCache | None,
        **layer_inputs: Any,
    ) -> torch.Tensor:
        """Runs step `step` on h `[batch, seq, hidden]`."""
        pooled = self.pool(hidden, sequences, cache, step).to(hidden.dtype)
        with self.port.carrying(step, self.controller(pooled, step)):
            view = cache.at_step(step) if cache is not None else None
            new = self.layer(hidden, past_key_values=view, **layer_inputs)
        new = self.norm(new, step)
        if self.gate is not None:
            gate = self.gate(new, hidden)
            new = gate * new + (1 - gate) * hidden
        result: torch.Tensor = new
        return result


class OuroborosForCausalLM(PreTrainedModel, GenerationMixin):
    """A pretrained decoder whose middle is one looped layer."""

    config_class = OuroborosConfig
    config: OuroborosConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _no_split_modules: ClassVar[list[str]] = ["RecurrentStep"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "embed_tokens.weight"}
    supports_gradient_checkpointing = False

    def __init__(self, config: OuroborosConfig) -> None:
        """Builds the model with random weights; the base is frozen, the loop's parts train."""
        super().__init__(config)
        base = config.base()
        layer_class, norm_class, rotary_class = _architecture(base.model_type)
        total = config.original_layers
        kept = [*range(config.prelude), *range(total - config.coda, total)]
        self.embed_tokens = nn.Embedding(base.vocab_size, base.hidden_size)
        layers = [layer_class(base, kept[slot]) for slot in range(config.num_layers)]
        for slot, layer in enumerate(layers):
            attention: Any = layer.self_attn
            attention.layer_idx = slot
        self.prelude = nn.ModuleList(layers[: config.prelude])
        self.recurrent = RecurrentStep(config, layer_class(base, config.recurrent))
        self.coda = nn.ModuleList(layers[config.prelude :])
        self.norm = norm_class(base.hidden_size, eps=base.rms_norm_eps)
        self.rotary_emb = rotary_class(base)
        self.lm_head = nn.Linear(base.hidden_size, base.vocab_size, bias=False)
        self.vocab_size = base.vocab_size
        self.post_init()
        self.mark_trainable()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # Only modules with parameters of their own come by here.
        if isinstance(module, ConstantLinear):
            module.reset_parameters()
        elif isinstance(module, StaticModulation):
            nn.init.zeros_(module.vectors)
        elif isinstance(module, StepNorm):
            nn.init.ones_(module.weight)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Loads a checkpoint as transformers does, and freezes the base again."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.mark_trainable()
        return loaded

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        # generate() then leaves the cache to forward(), which makes one with pooled sums.
        return False

    def get_input_embeddings(self) -> nn.Module:
        """Returns the token embedding."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the token embedding."""
        self.embed_tokens = value

    def mark_trainable(self, coda: str = "frozen") -> None:
        """Freezes the base and lets the Controller, gate and step norms train.

        Args:
            coda: what of the last layers trains too: `frozen` nothing, `norms` their RMSNorms
                and the final one, `full` all their weights and the final norm.

        Raises:
            ConfigError: `coda` is none of these.
        """
        if coda not in ("frozen", "norms", "full"):
            raise ConfigError(f"coda={coda!r} is unknown; choose one of frozen, norms, full")
        self.requires_grad_(False)
        own = (self.recurrent.controller, self.recurrent.norm, self.recurrent.gate)
        for module in own:
            if module is not None:
                module.requires_grad_(True)
        if coda == "frozen":
            return
        for name, parameter in self.coda.named_parameters():
            parameter.requires_grad_(coda == "full" or "norm" in name)
        self.norm.requires_grad_(True)

    def trainable_names(self) -> list[str]:
        """Returns the names of the parameters that train, in state-dict order."""
        return [name for name, value in self.named_parameters() if value.requires_grad]

    def row_depths(self, depth: Depth | None, batch: int) -> tuple[int, torch.Tensor | None]:
        """Returns the steps to run and, where rows differ, int64 `[batch]` depths.

        Raises:
            ConfigError: a depth is outside 1..max_depth, or their number is not `batch`.
        """
        if depth is None:
            depth = self.config.depth
        rows = torch.as_tensor(depth, dtype=torch.long, device=self.device).reshape(-1)
        if rows.numel() not in (1, batch):
            raise ConfigError(f"depth has {rows.numel()} entries for {batch} rows; give 1 or all")
        values = sorted(set(rows.tolist()))
        for value in values:
            self.config.check_depth(value)
        return values[-1], None if len(values) == 1 else rows

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: OuroborosCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        depth: Depth | None = None,
        logit_index: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Runs the model on `input_ids` `[B, S]`.

        Args:
            input_ids: int64 `[B, S]` new tokens.
            attention_mask: `[B, P+S]`, 1 valid; holes allowed anywhere.
            position_ids: int64 `[B, S]`; counted over valid positions where not given. Positions
                that restart at 0 mark packed documents.
            past_key_values: the cache of the first P slots.
            inputs_embeds: `[B, S, hidden]` in place of `input_ids`.
            labels: int64 `[B, S]`, -100 ignored; shifted here, once.
            use_cache: return a cache; False while training.
            depth: steps, one number or one a row; the config's default where None.
            logit_index: int64 `[B, K]` positions of the S whose logits come out.
            logits_to_keep: the last so many positions, or the positions given; 0 keeps all.
            kwargs: passed to transformers' loss (`num_items_in_batch`).

        Returns:
            logits `[B, K or S, vocab]`, the loss where labels are given, and the cache.

        Raises:
            ConfigError: no or two inputs, or a depth outside 1..max_depth.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ConfigError("give exactly one of input_ids and inputs_embeds")
        given: Any = input_ids if input_ids is not None else inputs_embeds
        batch, new = given.shape[:2]
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        steps, rows = self.row_depths(depth, batch)
        sequences = describe_sequences(batch, new, past, attention_mask, position_ids, given.device)
        if use_cache is None:
            packed = sequences.documents is not None
            use_cache = self.config.use_cache and not self.training and not packed
        if use_cache and past_key_values is None:
            past_key_values = OuroborosCache(self.config.num_layers)
        cache = past_key_values
        if cache is not None and sequences.documents is not None:
            raise ConfigError(
                "packed documents (position_ids that restart at 0) have no cache; "
                "pass use_cache=False, or one document a row"
            )
        positions: torch.Tensor | None = position_ids
        if positions is None:
            positions = _count_positions(attention_mask, past, batch, new, given.device)
        frozen = not any(p.requires_grad for p in self._prelude_parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
            layer_inputs: dict[str, Any] = {
                "attention_mask": sequences.additive_mask(hidden.dtype),
                "position_ids": positions,
                "position_embeddings": self.rotary_emb(hidden, position_ids=positions),
            }
            for layer in self.prelude:
                hidden = layer(hidden, past_key_values=cache, **layer_inputs)
        for step in range(steps):
            new_hidden = self.recurrent(hidden, step, sequences, cache, **layer_inputs)
            if rows is not None:
                new_hidden = torch.where((step < rows)[:, None, None], new_hidden, hidden)
            hidden = new_hidden
        for layer in self.coda:
            hidden = layer(hidden, past_key_values=cache, **layer_inputs)
        hidden = _select(self.norm(hidden), logit_index, logits_to_keep)
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)

    def _prelude_parameters(self) -> list[nn.Parameter]:
        return [*self.embed_tokens.parameters(), *self.prelude.parameters()]

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Adds positions counted over valid tokens, and where each row's last valid one is.

        So right-padded prompts generate what they generate alone; transformers by itself counts
        on from the padding's position and reads the padding's logits.
        """
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids,
            attention_mask=attention_mask,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        ids = inputs.get("input_ids")
        if attention_mask is None or ids is None:
            return inputs
        batch, new = ids.shape
        past = attention_mask.shape[1] - new
        inputs["position_ids"] = _count_positions(attention_mask, past, batch, new, ids.device)
        if new > 1:
            valid = attention_mask[:, past:] != 0
            slots = torch.arange(new, device=ids.device)
            inputs["logit_index"] = (slots * valid).argmax(-1, keepdim=True)
            inputs.pop("logits_to_keep", None)
        return inputs

    @torch.no_grad()
    def gate_means(self, input_ids: torch.LongTensor, depth: int) -> list[float]:
        """Returns the mean gate of every step on `input_ids` `[B, S]`; empty without a gate."""
        if self.recurrent.gate is None:
            return []
        means: list[float] = []

        def record(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            means.append(float(output.float().mean()))

        handle = self.recurrent.gate.register_forward_hook(record)
        try:
            self(input_ids=input_ids, depth=depth, use_cache=False)
        finally:
            handle.remove()
        return means


def _count_positions(
    attention_mask: torch.Tensor | None, past: int, batch: int, new: int, device: torch.device
) -> torch.Tensor:
    if attention_mask is None:
        return torch.arange(past, past + new, device=device).expand(batch, new)
    positions = attention_mask.long().cumsum(-1) - 1
    return positions.clamp(min=0)[:, past:].to(device)


def _select(
    hidden: torch.Tensor, logit_index: torch.Tensor | None, logits_to_keep: int | torch.Tensor
) -> torch.Tensor:
    if logit_index is not None:
        index = logit_index[..., None].expand(-1, -1, hidden.shape[-1])
        return hidden.gather(1, index)
    if isinstance(logits_to_keep, int):
        return hidden[:, -logits_to_keep:] if logits_to_keep else hidden
    return hidden[:, logits_to_keep]


AutoConfig.register("ouroboros", OuroborosConfig, exist_ok=True)
AutoModelForCausalLM.register(OuroborosConfig, OuroborosForCausalLM, exist_ok=True)
