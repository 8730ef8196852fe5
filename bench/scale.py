"""Memory, computing and tokens of healing at three sizes, from configs alone: docs/scale.md.

python -m bench.scale          prints the table
python -m bench.scale --write  puts it into docs/scale.md
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ouroboros.model.configuration import OuroborosConfig
    from ouroboros.training.memory import MemoryPlan
    from ouroboros.training.recipe import TrainOptions

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- bench.scale -->", "<!-- end -->"

# What was measured: recipes/heal.toml on one H100 (study/LOG.md).
MEASURED_TOKENS_PER_S = 145_000
MEASURED_TOKENS = 44.7e6
MEASURED_SHARE = 0.89
PEAK_FLOPS = 989e12
"""An H100's for dense bfloat16 matrices (NVIDIA's data sheet)."""
CARDS = {"H100": 80e9, "H200": 141e9}
"""Memory of a GPU (NVIDIA's data sheets)."""
USABLE = 0.9
"""Of that memory, what a plan may take: the allocator's waste and CUDA's context come on top."""
LARGE_EFFICIENCY = 0.35
"""Of that peak, what matrices of a 3B or 7B model usually reach in training: assumed."""


@dataclass(frozen=True)
class Size:
    """A model to fold, and the recipe that heals it.

    Attributes:
        name: as it is on the hub.
        config: of the original: what `AutoConfig.for_model` takes.
        recurrent: the layer that is looped; 8 + 1 + 8 layers stay.
        recipe: its file in recipes/.
        gpus: H100s that share the work: each with the whole model (DDP), or where that does not
            fit with a piece of it (FSDP).
    """

    name: str
    config: dict[str, Any]
    recurrent: int
    recipe: str
    gpus: int


SIZES = (
    Size(
        "SmolLM2-135M",
        {
            "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30,
            "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3,
            "vocab_size": 49152, "tie_word_embeddings": True, "max_position_embeddings": 8192,
        },
        21, "heal.toml", 1,
    ),
    Size(
        "Qwen2.5-3B",
        {
            "model_type": "qwen2", "hidden_size": 2048, "num_hidden_layers": 36,
            "intermediate_size": 11008, "num_attention_heads": 16, "num_key_value_heads": 2,
            "vocab_size": 151936, "tie_word_embeddings": True, "max_position_embeddings": 32768,
        },
        18, "heal_3b.toml", 1,
    ),
    Size(
        "Qwen2.5-7B",
        {
            "model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28,
            "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4,
            "vocab_size": 152064, "tie_word_embeddings": False, "max_position_embeddings": 131072,
        },
        18, "heal_3b.toml", 8,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Sheet:
    """What healing one size takes.

    Attributes:
        size: the model.
        trained: parameters that train.
        plan: memory of one process that holds everything.
        whole: bytes of all weights in float32, as FSDP splits them.
        ends: of those, the embedding's and the head's, which stay together.
        layer: of a layer's, which is put together while it is used.
        flops: of one training token, forward and backward, the teacher's included; matrices only.
        tokens: to train on.
    """

    size: Size
    trained: int
    plan: MemoryPlan
    whole: int
    ends: int
    layer: int
    flops: float
    tokens: float

    @property
    def card(self) -> str:
        """The smallest of CARDS that holds everything; empty where none does."""
        return next((name for name in CARDS if self.plan.total <= USABLE * CARDS[name]), "")

    @property
    def sharded(self) -> bool:
        """Whether it takes FSDP on H100s."""
        return self.card != "H100"

    def in_pieces(self, gpus: int) -> float:
        """Bytes of each of so many GPUs with FSDP."""
        plan = self.plan
        split = self.whole + plan.gradients + plan.optimizer
        kept = plan.teacher + plan.activations + plan.logits + self.ends + self.layer
        return kept + split / gpus

    def fewest(self) -> int:
        """The fewest H100s that hold it with FSDP; 0 where no number does."""
        room = USABLE * CARDS["H100"]
        counts = range(1, 1025)
        return next((gpus for gpus in counts if self.in_pieces(gpus) <= room), 0)

    def hours(self, efficiency: float) -> float:
        """Hours at a share of the peak of each GPU."""
        return self.tokens * self.flops / (efficiency * PEAK_FLOPS * self.size.gpus) / 3600


def fold(size: Size) -> OuroborosConfig:
    """The config of a size's conversion."""
    from ouroboros.model.configuration import OuroborosConfig

    return OuroborosConfig(
        base_config=dict(size.config), prelude=8, coda=8, recurrent=size.recurrent, bridge="entry"
    )


def read_options(size: Size) -> TrainOptions:
    """The recipe's options, distilling from the original."""
    from ouroboros.training.recipe import make_options

    flags = {"data": (Path("text"),), "teacher": size.name}
    return make_options(flags, ROOT / "recipes" / size.recipe)


def count_flops(config: OuroborosConfig, options: TrainOptions) -> float:
    """Operations of one token in matrices: two a weight forward, two for each gradient.

    The frozen prelude and the teacher run forward only, the head has no gradient of its own, and
    whatever else is passed through on the way back has both.
    """
    import numpy as np
    import torch

    from ouroboros.model.modeling import OuroborosForCausalLM
    from ouroboros.training.depth import depth_chances

    with torch.device("meta"):
        model = OuroborosForCausalLM(config)

    def matrices(*modules: Any) -> int:
        return sum(p.numel() for m in modules if m for p in m.parameters() if p.ndim == 2)

    low, high = options.depth_range
    chances = depth_chances(low, high, options.depth_draw)
    mean_depth = float(np.arange(low, high + 1) @ chances)
    loop = model.recurrent
    modulated = [one for layer in loop.projections() for one in layer.values()]
    bases = sum(one.lora_a[0].numel() + one.lora_b[0].numel() for one in modulated)
    controller: Any = loop.controller
    gate = None if loop.gate is None else loop.gate.proj
    step: int = matrices(*loop.layers, gate, controller) + bases
    if embedding := getattr(controller, "step_embedding", None):
        step -= embedding.weight.numel()
    layer = matrices(model.coda[0])
    head: int = model.lm_head.weight.numel()
    teacher: float = 2 * (layer * config.original_layers + head)
    forward_only = 2 * matrices(model.prelude)
    both: float = 6 * (matrices(model.bridge, model.coda) + step * mean_depth)
    return teacher + forward_only + both + 4 * head


def make_sheets() -> list[Sheet]:
    """Plans each size; tokens grow with what trains."""
    import torch

    from ouroboros.model.modeling import OuroborosForCausalLM
    from ouroboros.training.memory import FLOAT32_BYTES, plan_memory

    sheets: list[Sheet] = []
    for size in SIZES:
        config, options = fold(size), read_options(size)
        with torch.device("meta"):
            model: Any = OuroborosForCausalLM(config)
        model.mark_trainable(options.train_coda, options.train_recurrent, options.train_embedding)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        ends = {id(p): p for p in (model.get_input_embeddings().weight, model.lm_head.weight)}
        whole, at_ends, layer = (
            FLOAT32_BYTES * sum(p.numel() for p in tensors)
            for tensors in (model.parameters(), ends.values(), model.coda[0].parameters())
        )
        first = sheets[0].trained if sheets else trained
        plan = plan_memory(config, replace(options, compile=False), "cuda")
        tokens = MEASURED_TOKENS * trained / first
        flops = count_flops(config, options)
        sheets.append(Sheet(size, trained, plan, whole, at_ends, layer, flops, tokens))
    return sheets


def _name_card(sheet: Sheet) -> str:
    return f"{sheet.card}, {CARDS[sheet.card] / 1e9:.0f} GB" if sheet.card else "none"


def _each(sheet: Sheet) -> float:
    return sheet.in_pieces(sheet.size.gpus) if sheet.sharded else sheet.plan.total


def render(sheets: list[Sheet]) -> str:
    """The table of docs/scale.md."""
    measured = MEASURED_TOKENS_PER_S * sheets[0].flops / PEAK_FLOPS
    rows = [
        "| | " + " | ".join(sheet.size.name for sheet in sheets) + " |",
        "|---|" + "---|" * len(sheets),
    ]

    def row(name: str, values: list[str]) -> None:
        rows.append(f"| {name} | " + " | ".join(values) + " |")

    row("recipe", [f"`recipes/{sheet.size.recipe}`" for sheet in sheets])
    row("H100s", [f"{one.size.gpus}{', with FSDP' * one.sharded}" for one in sheets])
    row("parameters that train", [f"{sheet.trained / 1e6:,.0f} M" for sheet in sheets])
    for name, label in (
        ("weights", "weights, frozen ones in bfloat16"), ("teacher", "the original, bfloat16"),
        ("gradients", "gradients"), ("optimizer", "AdamW"),
        ("activations", "activations of a micro-batch at depth 16"), ("logits", "logits"),
        ("total", "all of it, in one process"),
    ):  # fmt: skip
        row(label, [f"{getattr(sheet.plan, name) / 1e9:,.1f} GB" for sheet in sheets])
    row(f"a GPU that holds it in {USABLE:.0%} of its memory", [_name_card(one) for one in sheets])
    row("**memory of each of the H100s**", [f"{_each(one) / 1e9:,.1f} GB" for one in sheets])
    least = [str(one.fewest() or "no number does") if one.sharded else "1" for one in sheets]
    row("H100s that it takes at least", least)
    row("operations a token", [f"{sheet.flops / 1e9:,.1f} GFLOP" for sheet in sheets])
    row("tokens", [f"{sheet.tokens / 1e6:,.0f} M" for sheet in sheets])
    slow = [f"{sheet.hours(measured):,.1f}" for sheet in sheets]
    row(f"hours at the {measured:.0%} of the peak measured at 135M", slow)
    fast = ["(measured above)"] + [f"{s.hours(LARGE_EFFICIENCY):,.1f}" for s in sheets[1:]]
    row(f"hours at {LARGE_EFFICIENCY:.0%} of it (assumed)", fast)
    shares = [f"{MEASURED_SHARE:.2f} (measured)"] + ["the same, if it goes by tokens"] * 2
    row("share of the gap closed", shares)
    return "\n".join(rows)


def main() -> None:
    """Prints the table, or writes it into its page."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/scale.md")
    table = render(make_sheets())
    if not parser.parse_args().write:
        print(table)
        return
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
