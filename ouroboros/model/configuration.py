"""`OuroborosConfig`: the shape of a converted model, and the check of everything in it."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from ouroboros.errors import ConfigError
from ouroboros.model.auto_map import AUTO_MAP, write_module
from ouroboros.model.base_config import (
    CORRECT_CONFIG,
    KEYS_OF_TRANSFORMERS,
    check_architecture,
    check_base_config,
    check_lengths,
    declared_fields,
    refuse_kernels,
    refuse_sliding_window,
)
from ouroboros.model.block import check_bases, check_block, check_unlooped, removed_by_layer
from ouroboros.model.field_types import CHOICES, FIELD_TYPES
from ouroboros.model.halters import check_halter
from ouroboros.model.rounding import check_qat
from runtime.depths import MAX_DEPTH

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The seven modulated projections of a decoder layer, in the order of the Controller's heads."""

STEP_NORM_EPS = 1e-6

MIRRORED = (
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "initializer_range",
    "tie_word_embeddings",
)
"""Fields of the original config that stand on the top level too, always with the same value."""

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Mirrored too; where `base_config` says nothing of one, it takes what the top level says."""

_TWICE = (*MIRRORED, *TOKEN_IDS, "head_dim")


class OuroborosConfig(PreTrainedConfig):
    """Configuration of a prelude / looped block of layers / coda model.

    Attributes:
        base_config: the original model's config as a plain dict (`model_type` included).
        prelude: number of first layers kept.
        coda: number of last layers kept.
        recurrent: index, in the original model, of the first layer that is looped; -1: in the
            middle.
        recurrent_layers: how many consecutive layers are looped, k; 1 is the paper's, 0 is none.
        rank: LoRA rank r of the frozen bases.
        alpha: LoRA alpha; the low-rank update is scaled by alpha / rank.
        style_size: width of the Controller's style vector z.
        max_depth: most steps the model has step embeddings and norms for.
        depth: steps run where a call names none.
        pooling: what the Controller reads: `causal` prefix mean, `mean` or `token`.
        norm_init: how the per-step norms started, `matched` or `ones`.
        bases: `mean` residual for all steps, or the residual of each `per_step` removed layer.
        modulation: `controller`; `static`: one learned vector a step (the paper's ablation);
            `free`: low-rank factors of its own for every step, no bases; or `none`.
        gate: False drops the gate, h becomes h' (the paper's ablation).
        gate_start: `open`: the gate has a bias of its own in every step, and starts with a first
            step that takes h' whole; `alike`: one bias for all, as in the paper and in a config
            without this key.
        bridge: where a linear map h + T h + t stands: at the `entry` of the loop, at its `exit`, or
            `none`, as in the paper and in a config without this key.
        input_injection: `add` gives the looped layers of every step the loop's entry state too.
        halter: what lets the model choose a prompt's depth: `none`, a `trained` one, or the
            untrained `confidence` or `distance`.
        halt_threshold: of its score, where a call names none.
        halt_depth: the most steps it may choose; nothing without a halter.
        trained_depths: sorted depths the model was trained at; empty: untrained.
        qat: the rounding that its matrices were trained for: `bits`, `block`, `symmetric`.
        source: where the weights came from: name, sha256, licence, commit; and `files`, the
            sha256 of each file that was read.

    What `base_config` and the top level both state is one fact: setting either name on the top
    level sets both, and values that contradict each other are refused.

    Source: arXiv 2604.02051, sections 3 and 4.
    """

    model_type = "ouroboros"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    # What a config.json means that lacks the key. Not the defaults of `ConvertOptions`, though most
    # are equal: those may change, and a checkpoint stays what it was.
    base_config: dict[str, Any] = field(default_factory=dict)
    prelude: int = 8
    coda: int = 8
    recurrent: int = -1
    recurrent_layers: int = 1
    rank: int = 32
    alpha: float = 16.0
    style_size: int = 128
    max_depth: int = 64
    depth: int = 8
    pooling: str = "causal"
    norm_init: str = "matched"
    bases: str = "mean"
    modulation: str = "controller"
    gate: bool = True
    gate_start: str = "alike"
    bridge: str = "none"
    input_injection: str = "none"
    halter: str = "none"
    halt_threshold: float = 0.5
    halt_depth: int = 0
    trained_depths: list[int] = field(default_factory=list)
    qat: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    # Mirrors of the original config that transformers reads on the top level.
    vocab_size: int = 0
    hidden_size: int = 0
    num_hidden_layers: int = 0
    num_attention_heads: int = 0
    num_key_value_heads: int = 0
    head_dim: int = 0
    max_position_embeddings: int = 0
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fills the mirrors from `base_config` and validates every value.

        Raises:
            ConfigError: a value is outside what the design allows, or a key is unknown.
        """
        if isinstance(self.base_config, PreTrainedConfig):
            self.base_config = declared_fields(self.base_config)
        self.trained_depths = self.trained_depths or []
        self.source, self.qat = self.source or {}, self.qat or {}
        for name, (matches, words) in FIELD_TYPES.items():
            if not matches(value := getattr(self, name)):
                raise ConfigError(f"{name}={value!r:.80} must be {words}", "give it so")
        # OuroborosConfig() without arguments is called by transformers itself for defaults.
        if self.base_config:
            self._refuse_unknown(kwargs)
            check_base_config(self.base_config)
            self.base_config = dict(self.base_config)
            self._mirror()
            self.trained_depths = sorted(set(self.trained_depths))
            self.source = dict(self.source)
            self._validate()
            kwargs["auto_map"] = dict(AUTO_MAP)  # ours, whatever a file said
        super().__post_init__(**kwargs)
        self._one_fact = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets a field; one that `base_config` states too is set there as well.

        So `resize_token_embeddings` and an end-of-text id set by hand survive being saved.

        Raises:
            ConfigError: the value is not of the field's kind.
        """
        if name in _TWICE and self.base_config and self.__dict__.get("_one_fact"):
            matches, words = FIELD_TYPES[name]
            if not matches(value):
                raise ConfigError(f"{name}={value!r:.80} must be {words}", "give it so")
            # A new dict: a shallow copy of this config keeps its own value.
            super().__setattr__("base_config", {**self.base_config, name: value})
        super().__setattr__(name, value)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain values."""
        values: dict[str, Any] = super().to_dict()
        values.pop("_one_fact", None)
        return values

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Reads a config's fields, as transformers does.

        Raises:
            ConfigError: a value is refused, or differs from what `base_config` says.
        """
        check_lengths(config_dict, "config")
        refuse_kernels(config_dict)
        found = super().from_dict(config_dict, **kwargs)
        config = found[0] if isinstance(found, tuple) else found
        if config.base_config:
            # Written out a default is a statement like any other; unwritten it says nothing.
            stated = {name: config_dict[name] for name in _TWICE if name in config_dict}
            config._refuse_contradictions({k: v for k, v in stated.items() if k not in kwargs})
        return found

    def _refuse_contradictions(self, stated: dict[str, Any]) -> None:
        # By the whole object, since base_config leaves its architecture's defaults out.
        base = self.base()
        for name, value in stated.items():
            expected = self.head_dim if name == "head_dim" else getattr(base, name, None)
            if value != expected:
                raise ConfigError(
                    f"{name}={value!r:.80} disagrees with base_config's {expected!r:.80}",
                    "make them the same",
                )

    @staticmethod
    def _refuse_unknown(kwargs: dict[str, Any]) -> None:
        unknown = sorted(set(kwargs) - KEYS_OF_TRANSFORMERS)
        if unknown:
            raise ConfigError(
                f"config has unknown keys {', '.join(unknown)}",
                "this version can't honour them, "
                "so load the checkpoint with the version that wrote it",
            )

    def base(self) -> PreTrainedConfig:
        """Returns a fresh config object of the original architecture.

        Raises:
            ConfigError: the model type is not one whose layers convert, or a value is refused.
        """
        values = dict(self.base_config)
        model_type = check_architecture(values.pop("model_type", None))
        try:
            config = CONFIG_MAPPING[model_type](**values)
        except Exception as error:  # transformers' validators raise kinds of their own
            raise ConfigError(
                f"base_config: {' '.join(str(error).split())}", CORRECT_CONFIG
            ) from error
        # Whichever attention transformers chose for the model, a registered function's name too.
        config._attn_implementation = getattr(self, "_attn_implementation", None) or "sdpa"
        return config

    def _mirror(self) -> None:
        base = self.base()
        for name in TOKEN_IDS:
            if (value := getattr(self, name)) is not None and getattr(base, name, None) is None:
                self.base_config[name] = value
        base = self.base()
        given = {name: getattr(self, name) for name in _TWICE}
        for name in (*MIRRORED, *TOKEN_IDS):
            if (value := getattr(base, name, None)) is not None:
                setattr(self, name, value)
        self.head_dim = getattr(base, "head_dim", None) or (
            base.hidden_size // base.num_attention_heads
        )
        self._refuse_contradictions(
            {k: v for k, v in given.items() if v != type(self).__dataclass_fields__[k].default}
        )
        # transformers sizes caches by this name; the loop's cache is our own object.
        self.num_hidden_layers = self.prelude + self.coda + self.recurrent_layers

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Writes config.json and the module through which `trust_remote_code` finds us."""
        super().save_pretrained(save_directory, *args, **kwargs)
        write_module(save_directory)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Does nothing: the class is installed, so saving must not copy its source file."""

    @property
    def num_layers(self) -> int:
        """Kept layers: prelude + coda."""
        return self.prelude + self.coda

    @property
    def halting(self) -> bool:
        """Whether the model can choose its depth."""
        return self.halter != "none"

    @property
    def original_layers(self) -> int:
        """Layers of the original model."""
        return int(self.base_config.get("num_hidden_layers", 0))

    def _validate(self) -> None:
        base = self.base()
        total = int(base.num_hidden_layers)
        for name in ("prelude", "coda"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} is negative", "give 0 or more")
        if self.prelude + self.coda >= total:
            raise ConfigError(
                f"prelude {self.prelude} + coda {self.coda} leave nothing to replace in a model "
                f"of {total} layers",
                f"their sum must be at most {total - 1}",
            )
        if self.recurrent == -1:
            self.recurrent = (total + 1 - self.recurrent_layers) // 2
        check_block(self.recurrent, self.recurrent_layers, self.prelude, self.coda, total)
        widths = (base.hidden_size, self.num_key_value_heads * self.head_dim)
        limit = min(*widths, base.intermediate_size)
        for name, top in (("rank", limit), ("style_size", 65536), ("max_depth", MAX_DEPTH)):
            if not 1 <= getattr(self, name) <= top:
                raise ConfigError(
                    f"{name}={getattr(self, name)} is outside 1..{top}", "give one in it"
                )
        if not self.alpha > 0:
            raise ConfigError(f"alpha={self.alpha} must be above 0", "give it so")
        self.check_depth(self.depth)
        if wrong := [depth for depth in self.trained_depths if not 1 <= depth <= self.max_depth]:
            raise ConfigError(
                f"trained_depths holds {wrong[0]}, outside 1..{self.max_depth}",
                "take it out, or give a larger max_depth",
            )
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r:.80} is unknown",
                    f"choose one of {', '.join(allowed)}",
                )
        if self.gate_start != "alike" and not self.gate:
            raise ConfigError(
                f"gate_start={self.gate_start!r} is of a gate, and this model has none",
                "leave one of them out",
            )
        check_halter(self)
        if self.bases == "per_step" and not all(self.removed_layers()):
            place = self.removed_layers().index([])
            raise ConfigError(
                f"bases=per_step needs a removed layer for every looped one, and prelude "
                f"{self.prelude} + coda {self.coda} of {total} layers remove none for layer "
                f"{self.recurrent + place}",
                "keep fewer, loop fewer or choose bases=mean",
            )
        check_bases(self.bases, self.modulation)
        check_unlooped(self.recurrent_layers, self.max_depth, self.bridge)
        check_qat(self.qat)
        refuse_sliding_window(base)

    def check_depth(self, depth: int) -> int:
        """Returns `depth` where it lies in 1..max_depth.

        Raises:
            ConfigError: it does not.
        """
        if not 1 <= depth <= self.max_depth:
            raise ConfigError(
                f"depth={depth} is outside this model's range 1..{self.max_depth}",
                "convert with a larger --max-depth for more",
            )
        return depth

    def looped_layers(self) -> range:
        """Original indices of the layers that are looped."""
        return range(self.recurrent, self.recurrent + self.recurrent_layers)

    def removed_layers(self) -> list[list[int]]:
        """Original indices of the removed layers that each looped layer stands in for.

        See `ouroboros.model.block.removed_by_layer`.
        """
        return removed_by_layer(
            self.recurrent, self.recurrent_layers, self.prelude, self.coda, self.original_layers
        )


AutoConfig.register("ouroboros", OuroborosConfig, exist_ok=True)
