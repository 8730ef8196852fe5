"""The rewritten layer, step, opening and closing against PyTorch's own, before anything is traced.

Both sides are float32 and sum in different orders: a relative error of 1e-6 is eight times what
float32 rounds one number by.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from transformers import LlamaConfig, Qwen2Config, Qwen3Config
from transformers.cache_utils import DynamicCache

from export.graph.layers import Layer, Shared
from export.graph.parts import Closing, Opening, Plain, Step, TracedBridge
from export.precision import PRECISIONS
from ouroboros import OuroborosConfig, OuroborosForCausalLM
from ouroboros.model.cache import CACHE, OuroborosCache
from ouroboros.model.pooling import Sequences, describe_sequences
from tests.support.tiny import DIMENSIONS

RELATIVE_ERROR = 1e-6
DEPTH, MAX_DEPTH = 5, 6
FAMILIES = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Whole, padded on the left, padded on the right: then three more tokens, one of them a hole.
MASK = torch.tensor(
    [
        [1, 1, 1, 1, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 0, 0, 1, 0, 1],
    ]
)
PROMPT = 5
ROW_DEPTH = torch.tensor([DEPTH, 3, 1])


class Call(NamedTuple):
    """What both sides are given in one call: positions `first` to `last` of MASK."""

    first: int
    last: int
    mask: torch.Tensor
    positions: torch.Tensor
    sequences: Sequences


CALLS = {"prompt": (0, PROMPT), "tokens after a prompt": (PROMPT, 8)}


def make_call(first: int, last: int) -> Call:
    mask = MASK[:, :last]
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, first:]
    sequences = describe_sequences(
        len(mask), last - first, first, mask, positions, torch.device("cpu")
    )
    return Call(first, last, mask, positions, sequences)


def build(family: str, rope: dict[str, Any] | None = None, **options: Any) -> OuroborosForCausalLM:
    """A model of 6 layers, 1 | 1 | 1, in which every weight, bias and basis is random."""
    more = {} if rope is None else {"rope_parameters": rope}
    base = FAMILIES[family](**DIMENSIONS, **more, head_dim=8)
    options = {"prelude": 1, "coda": 1, "rank": 3, "alpha": 2.0, "style_size": 8, **options}
    config = OuroborosConfig(base_config=base, max_depth=MAX_DEPTH, depth=3, **options)
    model = OuroborosForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if "rotary" in name:
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("norm.weight"):
                value.copy_(1 + 0.2 * noise)
            else:
                value.copy_(noise * (0.3 if value.dim() == 1 else value.shape[-1] ** -0.5))
    return model


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


def expect_equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype == torch.float32
    wide = expected.double()
    error = float((actual.double() - wide).norm() / wide.norm())
    assert error <= RELATIVE_ERROR, error


def layer_inputs(model: OuroborosForCausalLM, call: Call) -> dict[str, Any]:
    """What transformers' layers are given beside the hidden state."""
    return {
        "attention_mask": call.sequences.additive_mask(torch.float32),
        "position_ids": call.positions,
        "position_embeddings": model.rotary_emb(random(1), position_ids=call.positions),
    }


def make_shared(model: OuroborosForCausalLM, call: Call) -> Shared:
    """The same in the rewritten layer's form."""
    given = layer_inputs(model, call)
    groups = model.config.num_attention_heads // model.config.num_key_value_heads
    cos, sin = (one[:, None] for one in given["position_embeddings"])
    low, high = sin.chunk(2, dim=-1)
    mask = given["attention_mask"].repeat(1, 1, groups, 1)
    return Shared(mask, cos, torch.cat([-low, high], dim=-1))


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Such small matrices gain nothing from threads, which wait for each other on a busy core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("precision", ["fp32", "int8"])  # quantised weights are laid out apart
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_layer_equals_transformers_layer(
    family: str, call: tuple[int, int], precision: str
) -> None:
    model, given = build(family), make_call(*call)
    layer: Any = model.prelude[0]
    rows, new = given.positions.shape
    hidden = random(rows, new, model.config.hidden_size)
    past_shape = (rows, model.config.num_key_value_heads, given.first, model.config.head_dim)
    past = (random(*past_shape), 2 * random(*past_shape))
    cache = DynamicCache()
    cache.update(*past, 0)
    expected = layer(hidden, **{CACHE: cache}, **layer_inputs(model, given))
    shared = make_shared(model, given)
    actual, keys, values = Layer(layer, PRECISIONS[precision])(hidden, shared, past)
    expect_equal(actual, expected)
    expect_equal(keys, cache.layers[0].keys[:, :, given.first :])
    expect_equal(values, cache.layers[0].values[:, :, given.first :])
    plain = Plain(layer, PRECISIONS[precision])
    again, *_ = plain(hidden, (shared.mask, shared.cos, shared.sin), past)
    assert torch.equal(again, actual)


VARIANTS: dict[str, dict[str, Any]] = {
    "controller": {},
    "mean pooling": {"pooling": "mean"},
    "token pooling": {"pooling": "token"},
    "per_step bases": {"bases": "per_step"},
    "no gate": {"gate": False},
    "first step open": {"gate_start": "open"},
    "static": {"modulation": "static"},
    "static, per_step bases, no gate": {
        "modulation": "static",
        "bases": "per_step",
        "gate": False,
    },
    "free": {"modulation": "free"},
    "nothing modulates": {"modulation": "none"},
    "injection": {"input_injection": "add"},
    "a block": {"recurrent_layers": 2},
    "a block, static, per_step bases": {
        "recurrent_layers": 2,
        "prelude": 0,
        "modulation": "static",
        "bases": "per_step",
        "input_injection": "add",
    },
}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_step_equals_the_recurrent_block(
    family: str, variant: dict[str, Any], precision: str
) -> None:
    """A prompt, then tokens on its cache; each step starts from PyTorch's own state and cache."""
    model = build(family, **variant)
    if "bases" in variant:
        bases = model.recurrent.projections()[0]["q_proj"].lora_a
        assert 1 < len(bases) < DEPTH  # the last one serves the steps beyond it
    step = Step(model, PRECISIONS[precision], max_depth=DEPTH)
    cache, slots = OuroborosCache(model.config.num_layers), model.config.num_layers
    for given in (make_call(*call) for call in CALLS.values()):
        hidden = random(*given.positions.shape, model.config.hidden_size)
        past, past_sums = read_past(model, cache, given)
        # The last position, one before it, and that again.
        index = torch.tensor([[-1, -2, -2]]).expand(len(hidden), -1) + hidden.shape[1]
        picked = index[..., None].expand(-1, -1, hidden.shape[-1])
        shared = make_shared(model, given)
        entry = 2 * random(*hidden.shape[1:])[None].expand_as(hidden)
        for number in range(DEPTH):
            new = model.recurrent(
                hidden, number, given.sequences, cache, entry, **layer_inputs(model, given)
            )
            expected = torch.where((number < ROW_DEPTH)[:, None, None], new, hidden)
            actual, keys, values, sums = step(
                torch.tensor(number),
                hidden,
                (shared.mask, shared.cos, shared.sin),
                (*pool_inputs(given), past_sums),
                past,
                picked,
                ROW_DEPTH,
                entry,
            )
            expect_equal(actual, expected)
            first = slots + number * model.config.recurrent_layers
            written = cache.layers[first : first + model.config.recurrent_layers]
            for found, part in ((keys, "keys"), (values, "values")):
                new_ones = [getattr(one, part)[:, :, given.first :] for one in written]
                expect_equal(found, torch.cat(new_ones, dim=1))
            all_sums = expected_sums(
                model, hidden, given, past_sums[:, number, None], cache, number
            )
            expect_equal(sums, all_sums.gather(1, picked))
            assert torch.equal(actual[2], hidden[2]) == (number >= 1)  # a row of one step
            hidden = expected


def read_past(
    model: OuroborosForCausalLM, cache: OuroborosCache, call: Call
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Keys and values `[B, D * k, kv, P, head_dim]` and sums `[B, D, d]`, with a slot to spare."""
    config, rows = model.config, len(MASK)
    entries = (DEPTH + 1) * config.recurrent_layers
    shape = (rows, entries, config.num_key_value_heads, call.first, config.head_dim)
    keys, values = torch.zeros(shape), torch.zeros(shape)
    sums = torch.zeros(rows, DEPTH + 1, config.hidden_size)
    for entry in range(DEPTH * config.recurrent_layers if call.first else 0):
        layer = cache.layers[config.num_layers + entry]
        keys[:, entry], values[:, entry] = layer.keys, layer.values
    for number in range(DEPTH if call.first else 0):
        if number in cache.pool:
            sums[:, number] = cache.pool[number][:, 0]
    return (keys, values), sums


def pool_inputs(call: Call) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Valid, count and has_past, written out."""
    new = slice(call.first, call.last)
    count = call.mask.cumsum(1)[:, new].clamp(min=1)
    has_past = call.mask[:, : call.first].any(dim=1)
    return call.mask[:, new, None].float(), count[..., None].float(), has_past[:, None, None]


def expected_sums(
    model: OuroborosForCausalLM,
    hidden: torch.Tensor,
    call: Call,
    past: torch.Tensor,
    cache: OuroborosCache,
    number: int,
) -> torch.Tensor:
    """Pooled sums `[B, S, d]` at every new position."""
    match model.config.pooling:
        case "causal":
            valid, *_ = pool_inputs(call)
            sums = (hidden * valid).cumsum(1) + past
            torch.testing.assert_close(sums[:, -1:], cache.pool[number])
            return sums
        case "mean":
            return cache.pool[number].expand_as(hidden)
        case _:
            return hidden


@pytest.mark.parametrize("mask", ["padded", "rows of little"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("rope", [None, YARN], ids=["plain", "yarn"])
@pytest.mark.parametrize("family", FAMILIES)
def test_opening_equals_pytorch(
    family: str, rope: dict[str, Any] | None, call: tuple[int, int], mask: str
) -> None:
    model, given = build(family, rope), make_call(*call)
    if rope is not None:
        assert model.rotary_emb.attention_scaling != 1
    if mask == "rows of little":  # the second is all padding, the third's prompt is one token
        kept = torch.tensor([[1] * 8, [0] * 8, [0, 0, *[1] * 6]])
        little = given.mask * kept[:, : given.last]
        sequences = describe_sequences(
            3, given.last - given.first, given.first, little, None, torch.device("cpu")
        )
        given = given._replace(mask=little, sequences=sequences)
    # At the far end of the positions too, where an angle of float32 is coarsest.
    far = given.positions + DIMENSIONS["max_position_embeddings"] - 1 - given.positions.max()
    ids = torch.arange(given.positions.numel()).reshape(given.positions.shape) + 3
    index = torch.tensor([[0, 2], [1, 1], [2, 0]])
    opening = Opening(model, PRECISIONS["fp32"])
    for positions in (given.positions, far):
        placed = given._replace(positions=positions)
        h, bias, cos, sin, valid, count, has_past, picked = opening(
            ids, positions, given.mask, index
        )
        shared = make_shared(model, placed)
        assert torch.equal(h, model.embed_tokens(ids))
        assert torch.equal(bias, shared.mask)
        expect_equal(cos, shared.cos)
        expect_equal(sin, shared.sin)
        for actual, expected in zip((valid, count, has_past), pool_inputs(given), strict=True):
            assert torch.equal(actual, expected)
        assert torch.equal(h.gather(1, picked), torch.stack([h[r, i] for r, i in enumerate(index)]))


@pytest.mark.parametrize("tied", [True, False])
def test_closing_equals_norm_and_head(tied: bool) -> None:
    model = build("llama")
    head = model.embed_tokens.weight if tied else model.lm_head.weight
    model.lm_head.weight = torch.nn.Parameter(head)
    hidden, index = random(3, 5, model.config.hidden_size), torch.tensor([[0, 4], [1, 1], [3, 2]])
    picked = index[..., None].expand(-1, -1, hidden.shape[-1])
    expected = model.lm_head(model.norm(hidden.gather(1, picked)))
    expect_equal(Closing(model, PRECISIONS["fp32"])(hidden, picked, head), expected)
    turned = Closing(model, PRECISIONS["int8"])(hidden, picked, head.T.contiguous())
    expect_equal(turned, expected)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_bridge_equals_pytorch(precision: str) -> None:
    model = build("llama", bridge="entry")
    assert model.bridge is not None
    hidden = random(3, 5, model.config.hidden_size)
    assert float((model.bridge(hidden) - hidden).norm() / hidden.norm()) > 0.5
    expect_equal(TracedBridge(model.bridge, PRECISIONS[precision])(hidden), model.bridge(hidden))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_the_bridge_leaves_alone_is_not_rounded(precision: str) -> None:
    model = build("llama", bridge="entry")
    assert model.bridge is not None
    model.bridge.weight[:, 1:] = 0.0
    model.bridge.weight[1:] = 0.0
    model.bridge.bias.zero_()
    hidden = random(3, 5, model.config.hidden_size)
    mapped = TracedBridge(model.bridge, PRECISIONS[precision])(hidden)
    assert torch.equal(mapped[..., 1:], hidden[..., 1:])
    assert not torch.equal(mapped[..., 0], hidden[..., 0])
