"""`OuroborosForCausalLM`: prelude, a block of layers looped `depth` times, coda.

Source: arXiv 2604.02051, section 3; the decoder layers are transformers' own.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import can_return_tuple

from ouroboros.model.arguments import (
    Depth,
    check_attention,
    check_extras,
    check_logit_index,
    depth_of_rows,
    one_cache,
    one_input,
    select_positions,
)
from ouroboros.model.base_config import layer_classes
from ouroboros.model.bridge import Bridge
from ouroboros.model.cache import CACHE, OuroborosCache
from ouroboros.model.call import open_call, run_call
from ouroboros.model.configuration import OuroborosConfig
from ouroboros.model.generation import LoopedGenerationMixin
from ouroboros.model.halting import Halter, LoopedOutput
from ouroboros.model.modulation import (
    ConstantLinear,
    Injection,
    ModulatedLinear,
    StaticModulation,
    StepBias,
    StepNorm,
)
from ouroboros.model.names import RENAMED
from ouroboros.model.pooling import Sequences
from ouroboros.model.recompute import run_layer
from ouroboros.model.step import RecurrentStep
from ouroboros.model.trainable import mark_trainable


class OuroborosForCausalLM(PreTrainedModel, LoopedGenerationMixin):
    """A pretrained decoder whose middle is a looped block of layers, by default a single one."""

    config_class = OuroborosConfig
    config: OuroborosConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _no_split_modules: ClassVar[list[str]] = ["RecurrentStep"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "embed_tokens.weight"}
    supports_gradient_checkpointing = False
    recompute = False  # steps and coda layers keep no inner states while training

    def __init__(self, config: OuroborosConfig) -> None:
        """Builds the model with random weights; the base is frozen, the loop's parts train."""
        super().__init__(config)
        check_attention(config._attn_implementation)
        base = config.base()
        layer_class, norm_class, rotary_class = layer_classes(base.model_type)
        total = config.original_layers
        kept = [*range(config.prelude), *range(total - config.coda, total)]
        self.embed_tokens = nn.Embedding(base.vocab_size, base.hidden_size)
        layers = [layer_class(base, kept[slot]) for slot in range(config.num_layers)]
        for slot, layer in enumerate(layers):
            attention: Any = layer.self_attn
            attention.layer_idx = slot
        self.prelude = nn.ModuleList(layers[: config.prelude])
        self.bridge = Bridge(config) if config.bridge != "none" else None
        looped = config.looped_layers()
        self.recurrent = RecurrentStep(config, [layer_class(base, layer) for layer in looped])
        self.halter = Halter(config) if config.halting else None
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
        elif isinstance(module, ModulatedLinear):
            module.reset_factors()
        elif isinstance(module, Injection):
            nn.init.zeros_(module.weight)
        elif isinstance(module, StepBias):
            module.reset_parameters()
        elif isinstance(module, StepNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, Halter):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Loads a checkpoint as transformers does, and freezes the base again."""
        kwargs["key_mapping"] = {**RENAMED, **(kwargs.get("key_mapping") or {})}
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.mark_trainable()
        return loaded

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModelForCausalLM") -> None:
        """Does nothing: the class is installed, so saving must not copy its source file."""

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """Sets the attention of every layer: `sdpa`, `eager` or a registered function's name.

        Raises:
            ConfigError: it runs over a paged cache.
        """
        check_attention(attn_implementation if isinstance(attn_implementation, str) else None)
        super().set_attn_implementation(attn_implementation, *args, **kwargs)
        for module in self.modules():
            base = getattr(module, "config", None)
            if base is not None and base is not self.config:
                base._attn_implementation = self.config._attn_implementation

    def get_input_embeddings(self) -> nn.Module:
        """Returns the token embedding."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the token embedding."""
        self.embed_tokens = value

    def mark_trainable(
        self, coda: str = "frozen", recurrent: str = "frozen", embedding: str = "frozen"
    ) -> None:
        """Freezes the base and lets the Controller, gate, step norms and bridge train.

        Args:
            coda: what of the last layers trains too: `frozen` nothing, `norms` their RMSNorms
                and the final one, `lora` these and adapters, `full` all their weights.
            recurrent: what of the looped layers themselves trains: `frozen` nothing, `lora`
                their RMSNorms and adapters, `full` all of them.
            embedding: `frozen`, or `full` for embedding and LM head.

        Raises:
            ConfigError: a choice is none of these.
        """
        mark_trainable(self, coda, recurrent, embedding)

    def trainable_names(self) -> list[str]:
        """Returns the names of the parameters that train, in state-dict order."""
        return [name for name, value in self.named_parameters() if value.requires_grad]

    def row_depths(self, depth: Depth | None, batch: int) -> tuple[int, torch.Tensor | None]:
        """Returns the steps to run and, where rows differ, int64 `[batch]` depths.

        Raises:
            ConfigError: a depth is no whole number in 1..max_depth, or their number is not `batch`.
        """
        rows = depth_of_rows(depth, batch, self.config)
        steps = max(rows)
        if min(rows) == steps:
            return steps, None
        return steps, torch.tensor(rows, device=self.device)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: OuroborosCache | None = None,
        cache: OuroborosCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        depth: Depth | None = None,
        logit_index: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_hidden_states: bool | None = None,
        halt_threshold: float | None = None,
        backprop_steps: int | None = None,
        prelude_state: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> LoopedOutput:
        """Runs the model on `input_ids` `[B, S]`.

        Args:
            input_ids: int64 `[B, S]` new tokens.
            attention_mask: `[B, P+S]`, 1 valid; holes allowed anywhere.
            position_ids: int64 `[B, S]`; counted over valid positions where not given. Positions
                that restart at 0 mark packed documents.
            past_key_values: the cache of the first P slots.
            cache: the same, by the name that transformers gives it since 5.24.
            inputs_embeds: `[B, S, hidden]` in place of `input_ids`.
            labels: int64 `[B, S]`, -100 ignored; shifted here, once.
            use_cache: return a cache; False while training.
            depth: steps, one number or one a row; the config's default where None.
            logit_index: int64 `[B, K]` positions of the S whose logits come out.
            logits_to_keep: the last so many positions, or the positions given; 0 keeps all.
            output_hidden_states: return them; the config's choice where None.
            halt_threshold: rows whose halting score reaches it stop before their `depth`; the call
                must hold their whole prompts. 0 stops none, and None asks for no `depth_used`.
            backprop_steps: gradients go back through the last so many steps; None: through all. A
                bridge at the entry gets none where depth is greater.
            prelude_state: `[B, S, hidden]` of `run_prelude`, to begin behind the prelude; no cache.
            kwargs: `num_items_in_batch` for transformers' loss; `return_dict=False`: a tuple.

        Returns:
            logits `[B, K or S, vocab]`, the loss where labels are given, the cache, and the hidden
            states `[B, S, hidden]` where asked for: as in transformers' models, what enters each
            prelude layer, each step and each coda layer, and last what enters the LM head: 1 +
            prelude (none behind it) + depth + coda of them. A row that has had its steps repeats
            its state.

        Raises:
            ConfigError: no or two inputs, a shape that does not fit, a depth outside 1..max_depth,
                a cache of another kind or depth, or an argument that the model does not take.
        """
        loss_arguments = check_extras(kwargs, signature(type(self).forward).parameters)
        given = one_input(
            input_ids=input_ids, inputs_embeds=inputs_embeds, prelude_state=prelude_state
        )
        call = open_call(
            self,
            given,
            attention_mask,
            position_ids,
            one_cache(past_key_values, cache),
            use_cache,
            depth,
            halt_threshold,
            backprop_steps,
            behind_prelude=prelude_state is not None,
            record=output_hidden_states,
        )
        check_logit_index(len(given), logit_index, labels is not None, logits_to_keep)
        hidden, entered = run_call(self, call)
        logits = self.lm_head(select_positions(hidden, logit_index, logits_to_keep))
        sizes = {"vocab_size": self.vocab_size, **loss_arguments}
        loss = None if labels is None else self.loss_function(logits=logits, labels=labels, **sizes)
        used, kept = call.depth_used, {CACHE: call.cache}
        return LoopedOutput(
            loss=loss, logits=logits, hidden_states=entered, depth_used=used, **kept
        )

    def read_out(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the logits `[..., vocab]` of h `[..., hidden]`, by final norm and LM head."""
        if hidden.dtype != torch.float64:
            hidden = hidden.to(self.embed_tokens.weight.dtype)
        logits: torch.Tensor = self.lm_head(self.norm(hidden))
        return logits

    def layer_inputs(
        self, hidden: torch.Tensor, positions: torch.Tensor, sequences: Sequences
    ) -> dict[str, Any]:
        """Returns what every layer of a call reads beside h `[batch, seq, hidden]`."""
        return {
            "attention_mask": sequences.additive_mask(hidden.dtype),
            "position_ids": positions,
            "position_embeddings": self.rotary_emb(hidden, position_ids=positions),
        }

    def leave(
        self,
        hidden: torch.Tensor,
        layer_inputs: dict[str, Any],
        cache: OuroborosCache | None = None,
        note: Callable[[torch.Tensor], None] | None = None,
    ) -> torch.Tensor:
        """Takes h `[batch, seq, hidden]` from the loop to the LM head.

        Args:
            hidden: after any step.
            layer_inputs: of `layer_inputs`.
            cache: of the call.
            note: called with what enters each layer.
        """
        if self.bridge is not None and self.config.bridge == "exit":
            hidden = self.bridge(hidden)
        for layer in self.coda:
            if note is not None:
                note(hidden)
            again = self.recompute and cache is None
            hidden = run_layer(layer, again, hidden, **{CACHE: cache}, **layer_inputs)
        result: torch.Tensor = self.norm(hidden)
        return result


AutoModelForCausalLM.register(OuroborosConfig, OuroborosForCausalLM, exist_ok=True)
# By this name transformers' Trainer knows that labels are shifted in the model, so that its own
# label smoothing must shift them too.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[OuroborosConfig.model_type] = OuroborosForCausalLM.__name__
