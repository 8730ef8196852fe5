"""What a training run will hold in memory, from the config alone: nothing is loaded.

The model runs once on tensors that have a shape and no content, so a run of any size is planned in
seconds, on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ouroboros.model.limits import check_seq_len
from ouroboros.training.half import halve_frozen, parts_run
from ouroboros.training.loss import CHUNK_ELEMENTS, head_loss
from ouroboros.training.qat import round_as_asked, rounded_once
from ouroboros.training.teacher import is_folded, teacher_dtype

if TYPE_CHECKING:
    from ouroboros.model.configuration import OuroborosConfig
    from ouroboros.training.recipe import TrainOptions

FLOAT32_BYTES = 4
ADAM_STATES = 2
LOSS_COPIES = 5
"""Tensors of the size of a piece of logits that the loss holds at once, with a teacher."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that one process of a run holds, by what they are for.

    Attributes:
        weights: the model, in float32; of `--qat` the floats of what is rounded and frozen too.
        teacher: the original's body, in the type it computes in; 0 without one, or with its states
            kept on disk.
        gradients: of what trains, float32.
        optimizer: AdamW's two states of what trains, float32.
        activations: kept for the backward pass of one micro-batch at the greatest depth.
        logits: of one piece of positions, as the loss holds them.
    """

    weights: int
    teacher: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of them: what the run needs at its highest point, the allocator's waste aside."""
        return sum(getattr(self, field.name) for field in fields(self))


def plan_memory(config: OuroborosConfig, options: TrainOptions, device: str = "cpu") -> MemoryPlan:
    """Plans a run's memory.

    Args:
        config: of the checkpoint to train.
        options: of the run. A teacher that is no checkpoint here is taken to be the model that the
            config says the checkpoint was converted from.
        device: `cpu` or `cuda`, which decides how many positions the loss takes at a time.

    Raises:
        ConfigError: a depth is above the config's max_depth.
        DataError: `seq_len` is above the config's positions.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from ouroboros.storage.weights import build_empty
    from ouroboros.training.adapters import mark_trained

    config.check_depth(options.depth_range[1])
    check_seq_len(options.seq_len, config.max_position_embeddings)
    model = build_empty(config).train()
    with torch.device("meta"):
        mark_trained(model, options)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu").tie_weights()
        model.recompute = options.recompute
        rounded = round_as_asked(model, options)
        training = [p for p in model.parameters() if p.requires_grad]
        trained = FLOAT32_BYTES * sum(p.numel() for p in training)
        stated = bool(options.state_cache)
        bf16 = options.precision == "bf16"
        halved = halve_frozen(parts_run(model, stated) if bf16 else ())
        activations = count_activations(model, options)
        # With its states on disk it is gone before the training begins.
        runs = bool(options.teacher) and not stated
        kind = teacher_dtype(options.precision)
        teacher = kind.itemsize * _count_teacher(config, options.teacher) if runs else 0
    elements = min(CHUNK_ELEMENTS[device], config.vocab_size * options.batch_size * options.seq_len)
    return MemoryPlan(
        weights=sum(t.nbytes for t in _own_tensors(model).values())
        + sum(floats.nbytes for _, floats in (rounded.frozen if rounded else ()))
        + (halved.float_bytes if device == "cpu" else 0),
        teacher=teacher,
        gradients=trained,
        optimizer=ADAM_STATES * trained,
        activations=activations,
        logits=LOSS_COPIES * FLOAT32_BYTES * elements,
    )


def describe_plan(checkpoint: Path, options: TrainOptions) -> str:
    """Returns the plan of a run on this machine, a line a part, for people.

    Raises:
        CheckpointError: the checkpoint has no readable config.
        ConfigError, DataError: as `plan_memory`.
    """
    from ouroboros.checkpoint import read_config

    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = "cuda" if here is not None and here.type == "cuda" else "cpu"
    plan = plan_memory(read_config(checkpoint), options, device)
    words = {
        "weights": "weights" if options.precision == "fp32" else "weights, frozen ones in bfloat16",
        "teacher": f"the teacher, {str(teacher_dtype(options.precision)).removeprefix('torch.')}",
        "gradients": "gradients of what trains",
        "optimizer": "AdamW's two states of it",
        "activations": f"activations of {options.batch_size} windows of {options.seq_len} tokens "
        f"at depth {options.depth_range[1]}",
        "logits": "logits of a piece of positions",
        "total": f"in all, in every process ({device})",
    }
    return "\n".join(f"{getattr(plan, name) / 1e9:8.2f} GB  {text}" for name, text in words.items())


def _own_tensors(model: torch.nn.Module) -> dict[int, torch.Tensor]:
    """Parameters and buffers by their storage: tied ones once."""
    tensors = [*model.parameters(), *model.buffers()]
    return {tensor.untyped_storage()._cdata: tensor for tensor in tensors}


def count_activations(model: Any, options: TrainOptions) -> int:
    """Bytes kept for the backward pass of one micro-batch; the weights themselves aside."""
    own = _own_tensors(model)
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that its address is not given out again
        return tensor

    shape = (options.batch_size, options.seq_len)
    ids = torch.zeros(shape, dtype=torch.long)
    with (
        rounded_once(model),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"),
    ):
        output = model(
            input_ids=ids,
            depth=options.depth_range[1],
            backprop_steps=options.backprop_steps or None,
            use_cache=False,
            logits_to_keep=1,
            output_hidden_states=True,
        )
        hidden = output.hidden_states[-1]
        flat = hidden.flatten(0, 1)
        head_loss(flat, model.lm_head.weight, ids.flatten(), flat.detach())
        if options.recompute:  # what entered is held by what computes again, not by autograd
            frozen = options.train_embedding == "frozen"
            for state in output.hidden_states[model.config.prelude if frozen else 0 :]:
                note(state)
    return sum(storage.nbytes() for storage in kept.values())


def _count_teacher(config: OuroborosConfig, source: str) -> int:
    """Numbers of a folded model, or of the original without its head."""
    from transformers import AutoModel

    from ouroboros.checkpoint import read_config
    from ouroboros.storage.weights import build_empty

    if is_folded(source):
        folded = build_empty(read_config(Path(source)))
        return sum(tensor.numel() for tensor in _own_tensors(folded).values())
    body: torch.nn.Module = AutoModel.from_config(config.base())
    return sum(p.numel() for p in body.parameters())
