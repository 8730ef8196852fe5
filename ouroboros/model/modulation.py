"""What changes the looped layers at a step: low-rank modulated projections and their Controller.

Source: arXiv 2604.02051, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

from ouroboros.model.configuration import PROJECTIONS, STEP_NORM_EPS, OuroborosConfig
from ouroboros.model.pooling import widen

GATE_BIAS = -2.0
"""Where the gate's bias starts: sigmoid(-2) = 0.12, so 88 % of h is kept."""
FIRST_BIAS, LATER_BIAS = 4.0, -3.3
"""Where it starts in a first step that is open, 0.98, and in the steps after such a one, 0.04."""


class ModulationPort:
    """Carries a step's modulation to the projections of a layer.

    A Hugging Face decoder layer calls its projections with the hidden state alone; the port is
    the one object they share with the loop, set while the layer runs.
    """

    def __init__(self) -> None:
        """Makes an empty port: the projections then act unmodulated."""
        self.step = 0
        self.vectors: dict[str, torch.Tensor] | None = None

    @contextmanager
    def carrying(self, step: int, modulation: torch.Tensor | None) -> Iterator[None]:
        """Offers `modulation` `[batch, seq or 1, 7 * rank]`, if any, to the projections."""
        self.step = step
        if modulation is not None:
            cuts = modulation.chunk(len(PROJECTIONS), -1)
            self.vectors = dict(zip(PROJECTIONS, cuts, strict=True))
        try:
            yield
        finally:
            self.vectors = None


FREE_FACTORS = (".lora_a", ".lora_b")
"""How the names end of free factors: parameters within a layer that are not the original's."""


class ModulatedLinear(nn.Linear):
    """A frozen projection W with a low-rank update: W + (alpha / r) B diag(m) A.

    The bases are `lora_a` `[bases, rank, in]` and `lora_b` `[bases, out, rank]`, buffers, or with
    `free` modulation parameters; base `min(step, bases - 1)` serves a step.
    """

    lora_a: torch.Tensor
    lora_b: torch.Tensor

    def __init__(
        self,
        linear: nn.Linear,
        name: str,
        port: ModulationPort,
        config: OuroborosConfig,
        bases: int,
    ) -> None:
        """Takes over the weight and bias of `linear`; the update of all `bases` starts at zero."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.name, self.port = name, port
        self.scaling = config.alpha / config.rank
        like, rank = linear.weight, config.rank
        self.free = config.modulation == "free"
        for side, shape in (
            ("lora_a", (bases, rank, self.in_features)),
            ("lora_b", (bases, self.out_features, rank)),
        ):
            if self.free:
                self.register_parameter(side, nn.Parameter(like.new_zeros(shape)))
            else:
                self.register_buffer(side, like.new_zeros(shape))

    def reset_factors(self) -> None:
        """Starts free factors: A at random as PEFT does, B at zero, so that nothing is added."""
        if self.free:
            bound = self.in_features**-0.5
            nn.init.uniform_(self.lora_a, -bound, bound)
            nn.init.zeros_(self.lora_b)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Projects `[batch, seq, in]` to `[batch, seq, out]`."""
        output = functional.linear(input, self.weight, self.bias)
        if self.port.vectors is None:
            return output
        base = min(self.port.step, self.lora_a.shape[0] - 1)
        low = functional.linear(input, self.lora_a[base])
        low = low * (self.port.vectors[self.name] * self.scaling).to(low.dtype)
        return output + functional.linear(low, self.lora_b[base])


class ConstantLinear(nn.Linear):
    """A linear layer that starts at weight zero, so that its output starts as its bias.

    A class of its own because transformers initialises only modules with parameters of their own:
    `Controller` and `Gate` are never handed to `_init_weights`.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, start: float = 0.0
    ) -> None:
        """Every bias starts at `start`."""
        self.start = start
        super().__init__(in_features, out_features, bias)

    def reset_parameters(self) -> None:
        """Sets weight and bias to their start."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.constant_(self.bias, self.start)


def modulation_size(config: OuroborosConfig) -> int:
    """Numbers that modulate one step: a rank for each projection of each looped layer."""
    return config.recurrent_layers * len(PROJECTIONS) * config.rank


class Controller(nn.Module):
    """The hypernetwork: pooled hidden state and step to the diagonals of all updates of a step."""

    def __init__(self, config: OuroborosConfig) -> None:
        """Builds the network; its heads start at zero, so a conversion starts unmodulated."""
        super().__init__()
        style = config.style_size
        self.style = nn.Linear(config.hidden_size, 2 * style)
        self.step_embedding = nn.Embedding(config.max_depth, style)
        self.mix_1 = nn.Linear(3 * style, 2 * style)
        self.mix_2 = nn.Linear(2 * style, style)
        self.heads = ConstantLinear(style, modulation_size(config), bias=False)

    def forward(self, pooled: torch.Tensor, step: int) -> torch.Tensor:
        """Maps pooled h `[batch, seq or 1, hidden]` to `[batch, seq or 1, layers * 7 * rank]`."""
        z = functional.silu(self.style(pooled))
        embedding = self.step_embedding.weight[step].to(z.dtype).expand(*z.shape[:-1], -1)
        z = torch.cat([z, embedding], dim=-1)
        z = functional.silu(self.mix_2(functional.silu(self.mix_1(z))))
        modulation: torch.Tensor = self.heads(z)
        return modulation


class StaticModulation(nn.Module):
    """The paper's ablation: one learned vector a step, blind to the hidden state."""

    def __init__(self, config: OuroborosConfig) -> None:
        """Starts at zero, so a conversion starts unmodulated."""
        super().__init__()
        self.vectors = nn.Parameter(torch.zeros(config.max_depth, modulation_size(config)))

    def forward(self, pooled: torch.Tensor, step: int) -> torch.Tensor:
        """Returns `[1, 1, layers * 7 * rank]` for `step`, whatever `pooled` holds."""
        return self.vectors[step][None, None]


class ConstantModulation(nn.Module):
    """Ones for every step: of low-rank factors that train themselves, nothing is left to modulate.

    The ablation of equal size: a free low-rank update a step has as many trainable numbers as a
    Controller, and does not see the hidden state.
    """

    def __init__(self, config: OuroborosConfig) -> None:
        """Has no weights."""
        super().__init__()
        self.size = modulation_size(config)

    def forward(self, pooled: torch.Tensor, step: int) -> torch.Tensor:
        """Returns ones `[1, 1, layers * 7 * rank]`."""
        return pooled.new_ones(1, 1, self.size)


def make_modulation(config: OuroborosConfig) -> nn.Module | None:
    """Returns what gives the projections of a step their vectors; None where nothing does."""
    match config.modulation:
        case "controller":
            return Controller(config)
        case "static":
            return StaticModulation(config)
        case "free":
            return ConstantModulation(config)
        case _:
            return None


def normalise(x: torch.Tensor) -> torch.Tensor:
    """Returns x `[..., hidden]` with a root mean square of one over its last dimension."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + STEP_NORM_EPS)


class StepNorm(nn.Module):
    """RMSNorm with a weight of its own for every step, computed in float32."""

    def __init__(self, config: OuroborosConfig) -> None:
        """Starts at ones; a `matched` conversion overwrites them with measured scales."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.max_depth, config.hidden_size))

    def forward(self, hidden: torch.Tensor, step: int) -> torch.Tensor:
        """Normalises `[batch, seq, hidden]` with the weight of `step`."""
        return (normalise(widen(hidden)) * widen(self.weight[step])).to(hidden.dtype)


class Injection(nn.Module):
    """Adds the state at the loop's entry to what the looped layers are fed, channel by channel.

    So every step sees what was read, however far h has gone, and gradients that go back through
    the last steps only reach what lies before the loop.

    Source: Geiping et al., arXiv 2502.05171, who map both by a matrix; here it starts as nothing.
    """

    def __init__(self, config: OuroborosConfig) -> None:
        """Starts at zero, so a conversion starts without it."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, hidden: torch.Tensor, entry: torch.Tensor) -> torch.Tensor:
        """Returns h + w e, both `[batch, seq, hidden]`."""
        return hidden + (self.weight * entry).to(hidden.dtype)


class Gate(nn.Module):
    """How much of the step's output enters the hidden state, per position and channel."""

    def __init__(self, config: OuroborosConfig) -> None:
        """Starts at weight 0 and bias -2: 88 % of h is kept, but in a first step that is open."""
        super().__init__()
        self.proj = ConstantLinear(2 * config.hidden_size, config.hidden_size, start=GATE_BIAS)
        self.steps = StepBias(config) if config.gate_start == "open" else None

    def forward(self, new: torch.Tensor, old: torch.Tensor, step: int) -> torch.Tensor:
        """Returns g in (0, 1) of `step`, `[batch, seq, hidden]`, from h' and h."""
        opening = self.proj(torch.cat([new, old], dim=-1))
        if self.steps is not None:
            opening = opening + self.steps.bias[step].to(opening.dtype)
        return torch.sigmoid(opening)


class StepBias(nn.Module):
    """What is added to the gate's bias in each step, so that the first may take h' whole.

    The coda was made to stand behind whole layers: an eighth of one is not what it knows.
    """

    def __init__(self, config: OuroborosConfig) -> None:
        """Starts with the first step open and the later ones nearly shut."""
        super().__init__()
        self.bias = nn.Parameter(torch.empty(config.max_depth, config.hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the biases to their start."""
        nn.init.constant_(self.bias, LATER_BIAS - GATE_BIAS)
        nn.init.constant_(self.bias[0], FIRST_BIAS - GATE_BIAS)
