"""Chooses integers for the weights: round to nearest, or GPTQ on calibration text.

Works on the PyTorch model, block by block in the order of the forward pass, and leaves in it the
weights that the integers stand for: the result is the reference the quantised graph is checked
against.

Source: GPTQ, arXiv 2210.17323; the search of each block's scale as in AWQ, arXiv 2306.00978.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from export.errors import ExportError
from export.layout import attention_scale
from export.quantize.calibration import CalibrationRun, blocks_in_order
from export.quantize.smoothing import smooth_model
from export.quantize.weights import QuantizedModel, QuantizedWeight, check_block
from ouroboros.model.matrices import matrices_to_round
from ouroboros.model.modeling import OuroborosForCausalLM
from ouroboros.model.rounding import ROWS, Rounding
from runtime.bundle.manifest import QuantizationSpec

# Much more than the usual 0.01: what a short text says of pairs of inputs holds badly elsewhere. On
# SmolLM2 it takes a fifth off the KL on code after calibration on prose, and a little on prose.
DAMPING = 1.0
LM_HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"
# What leaves attention and MLP goes straight into the residual stream, and queries and keys share
# the values' product. The first layer, the last ones and the looped ones are kept whole: nothing
# comes after the last to even their errors out, and the looped ones repeat their own.
SENSITIVE = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")
LAST = 3  # layers before the LM head that are kept whole
COLUMNS = 128  # GPTQ settles its error within so many inputs before it touches the rest


@dataclass(frozen=True)
class Quantization(Rounding):
    """How weights are turned into integers.

    Attributes:
        bits: 4 or 8, of the matrices that `sensitive_bits` is not for: the MLP's gate and up
            projections of most layers.
        depth: depth at which calibration text is run.
        sensitive_bits: of embedding, LM head, recurrence gate, the first, the looped and the last
            three layers, the bridge, and of the attention and down projections of all. Rounded to 4
            bits, embedding and head alone cost SmolLM2 9 % of perplexity, the looped layer's values
            4 %.
        accuracy_level: of ONNX Runtime's MatMulNBits as the bundle ships: 1 float32, 4 8-bit
            activations.
    """

    depth: int = 8
    sensitive_bits: int = 8
    accuracy_level: int = 1

    @classmethod
    def from_spec(cls, spec: QuantizationSpec) -> Quantization:
        """Returns how the weights of a bundle were rounded; for calibrated ones the depth lacks."""
        return cls(
            bits=spec.bits,
            block=spec.block,
            symmetric=spec.symmetric,
            sensitive_bits=spec.sensitive_bits,
            accuracy_level=spec.accuracy_level,
        )

    def describe(self, windows: torch.Tensor | None) -> QuantizationSpec:
        """What the manifest says of it, calibrated on int64 `windows` or not at all."""
        text = None if windows is None else hashlib.sha256(windows.numpy().tobytes()).hexdigest()
        method = "rtn" if windows is None else "gptq"
        return QuantizationSpec(
            bits=self.bits,
            sensitive_bits=self.sensitive_bits,
            block=self.block,
            symmetric=self.symmetric,
            method=method,
            calibration=text,
            accuracy_level=self.accuracy_level,
        )


@torch.no_grad()
def quantize_model(
    model: OuroborosForCausalLM,
    how: Quantization,
    windows: torch.Tensor | None = None,
    report: Callable[[str], None] | None = None,
) -> QuantizedModel:
    """Quantises every matrix of the layers, bridge, gate, the embedding and the LM head, in place.

    Args:
        model: float32, eval mode; afterwards it holds the dequantised weights, and its Controller
            and low-rank bases rounded to what float16 holds. With `windows` its channels were
            evened out before, and a tied head is untied.
        how: bits, blocks, zero points.
        windows: calibration text int64 `[windows, seq]`; None rounds to nearest.
        report: called with a line of progress now and then.

    Raises:
        ExportError: the block size does not fit.
    """
    say = report or (lambda line: None)
    inputs = [matrix.in_features for _, matrix in matrices_to_round(model, "")]
    check_block(how.block, [*inputs, model.lm_head.in_features])
    tied = model.lm_head.weight is model.embed_tokens.weight
    text, sizes = None, None
    if windows is not None:
        say("evening out what the matrices are fed")
        sizes = smooth_model(model, windows, how.depth)
        text = CalibrationRun(model, windows, how.depth)
    weights: dict[str, QuantizedWeight] = {}
    blocks = blocks_in_order(model)
    layers = [block for _, block in blocks if block is not model.bridge]
    whole = [layers[0], *layers[-LAST:], model.recurrent, model.bridge]
    for number, (prefix, block) in enumerate(blocks, 1):
        linears = dict(matrices_to_round(block, prefix))
        moments = {} if text is None else text.second_moments(block, linears)
        for name, linear in linears.items():
            sensitive = block in whole or name.endswith(SENSITIVE)
            bits = how.sensitive_bits if sensitive else how.bits
            weight = choose_integers(linear.weight, replace(how, bits=bits), moments.get(name))
            _dequantize(weight, linear.weight)
            weights[f"{name}.weight"] = weight
        if text is not None:
            text.advance(block)
        say(f"quantised {prefix} ({number} of {len(blocks)})")
    # Rounded, never calibrated: tied to the embedding, a head can't make up for errors of its own.
    rounding = replace(how, bits=how.sensitive_bits)
    head = weights[LM_HEAD] = choose_integers(model.lm_head.weight, rounding, None)
    weights[EMBEDDING] = (
        head if tied else choose_integers(model.embed_tokens.weight, rounding, None)
    )
    _dequantize(head, model.lm_head.weight)
    if model.embed_tokens.weight is not model.lm_head.weight:
        _dequantize(weights[EMBEDDING], model.embed_tokens.weight)
    factor = None if sizes is None else 1.0 / sizes
    if factor is not None:
        model.embed_tokens.weight.mul_(factor)
    _round_floats(model)
    return QuantizedModel(weights, None if factor is None else factor.numpy())


def _dequantize(weight: QuantizedWeight, parameter: torch.Tensor) -> None:
    """Writes what integers stand for into a parameter `[out, in]`, some rows at a time."""
    for start in range(0, len(parameter), ROWS):
        rows = parameter[start : start + ROWS]
        rows.copy_(torch.from_numpy(weight.columns(start, start + ROWS).dequantized().T))


def choose_integers(
    weight: torch.Tensor, how: Quantization, moments: torch.Tensor | None
) -> QuantizedWeight:
    """Integers of a weight `[out, in]`, by GPTQ where second moments `[in, in]` are given.

    Raises:
        ExportError: the second moments determine nothing.
    """
    weight = weight.detach().float()
    # The narrowest type: a large model's integers are all held at once.
    narrow = torch.int8 if how.symmetric else torch.uint8
    integers = torch.empty(weight.T.shape, dtype=narrow)
    if moments is None:
        scales, zeros = how.span(weight)
        for start in range(0, len(weight), ROWS):
            rows = slice(start, start + ROWS)
            blocks = how.blocks(weight[rows])
            values = how.integers(blocks, scales[rows, :, None], zeros[rows, :, None])
            integers[:, rows] = values.reshape(len(blocks), -1).T
    else:
        moments = moments + DAMPING * moments.diagonal().mean() * torch.eye(len(moments))
        scales, zeros = _search(weight, how, moments.diagonal())
        integers.copy_(_gptq(weight, how, moments, scales, zeros).T)
    zero_points = None if how.symmetric else zeros.to(narrow).T.contiguous().numpy()
    return QuantizedWeight(integers.numpy(), scales.T.contiguous().numpy(), zero_points, how.bits)


def _search(
    weight: torch.Tensor, how: Quantization, importance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The span of every block whose rounding error, weighted by its inputs, is least."""
    blocks, weights = how.blocks(weight), importance.reshape(1, -1, how.block)
    best_error, best = None, how.span(weight)
    for part in np.linspace(1.0, 0.6, 17):
        scales, zeros = how.span(weight, float(part))
        rounded = how.integers(blocks, scales[..., None], zeros[..., None]) - zeros[..., None]
        error = ((rounded * scales[..., None] - blocks).square() * weights).sum(-1)
        if best_error is None:
            best_error = error
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best = (torch.where(better, scales, best[0]), torch.where(better, zeros, best[1]))
    return best


def _gptq(
    weight: torch.Tensor,
    how: Quantization,
    moments: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
) -> torch.Tensor:
    """Rounds input by input; the inputs still to come make up for the error of those before."""
    undetermined = ExportError(
        "the calibration text leaves a matrix undetermined",
        "give a longer text; if it is long, a weight is broken: convert or train again",
    )
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments.double()))
    except RuntimeError as failure:  # LinAlgError is one
        raise undetermined from failure
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    # Transposed, so that an input's weights lie side by side in memory.
    left, values = weight.T.contiguous(), torch.empty_like(weight.T)
    for start in range(0, len(left), COLUMNS):
        stop = min(start + COLUMNS, len(left))
        errors = torch.empty_like(left[start:stop])
        for row in range(start, stop):
            group = row // how.block
            scale, zero = scales[:, group], zeros[:, group]
            values[row] = how.integers(left[row], scale, zero)
            error = (left[row] - (values[row] - zero) * scale) / upper[row, row]
            errors[row - start] = error
            left[row + 1 : stop].addr_(upper[row, row + 1 : stop], error, alpha=-1)
        left[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    if not bool(torch.isfinite(left).all()):
        raise undetermined
    return values.T


def _round_floats(model: OuroborosForCausalLM) -> None:
    """Rounds what is stored as float16: Controller and low-rank bases, as the graph lays them out.

    B is stored times alpha / rank and the attention scale, so it is rounded times them.
    """
    controller = model.recurrent.controller
    for name, parameter in controller.named_parameters() if controller is not None else ():
        if name.endswith("weight") and "embedding" not in name:
            parameter.copy_(parameter.half().float())
    layers = zip(model.recurrent.layers, model.recurrent.projections(), strict=True)
    for layer, projections in layers:
        scale = attention_scale(layer)
        for name, target in projections.items():
            factor = target.scaling * (scale if name == "q_proj" else 1.0)
            target.lora_a.copy_(target.lora_a.half().float())
            target.lora_b.copy_((target.lora_b * factor).half().float() / factor)
