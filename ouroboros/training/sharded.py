"""Training with weights, gradients and optimizer split over processes, by accelerate's FSDP 2.

Everything is accelerate's and PyTorch's; here stands what a trainer must not forget: a parameter in
its hands is a piece, and to put it together is a call that every process makes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ouroboros.errors import TrainingError

if TYPE_CHECKING:
    from ouroboros.training.recipe import TrainOptions

ASKED = "ACCELERATE_USE_FSDP"
"""Set by `accelerate launch` for a configuration with FSDP."""

CONFIG = "see recipes/fsdp.yaml"


def check_sharding(plugin: Any, options: TrainOptions) -> None:
    """Refuses what would train something else, or save pieces; sets that autocast alone casts.

    Args:
        plugin: accelerate's FSDP plugin, which is changed: weights stay float32 and what is
            computed in bfloat16 is up to autocast, as in one process.
        options: of the run.

    Raises:
        TrainingError: it is of FSDP 1, saves states in pieces, loads in one process alone, wraps
            layers to recompute them, or an option of the run is not for pieces.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    version = plugin.fsdp_version
    if version != 2:
        # Its layers hold no weights outside their own forward pass, and the loss reads the head's.
        raise TrainingError(
            f"fsdp_version={version} is not supported", f"set fsdp_version to 2, {CONFIG}"
        )
    kind = getattr(plugin.state_dict_type, "name", str(plugin.state_dict_type))
    if kind != "FULL_STATE_DICT":
        raise TrainingError(
            f"fsdp_state_dict_type={kind} saves states in pieces, which this trainer does not read",
            f"set it to FULL_STATE_DICT, {CONFIG}",
        )
    if plugin.cpu_ram_efficient_loading:
        # accelerate sends every entry of a state dict as pieces; low-rank bases are buffers, whole.
        raise TrainingError(
            "fsdp_cpu_ram_efficient_loading can't load the low-rank bases",
            f"set it to false, {CONFIG}",
        )
    if plugin.activation_checkpointing:
        raise TrainingError(
            "fsdp_activation_checkpointing renames what is trained",
            "leave it out, give --recompute",
        )
    for name, given in (
        ("qat", options.qat != "none"),
        ("compile", options.compile),
        ("state_cache", options.state_cache),
        ("train_embedding", options.train_embedding != "frozen"),
    ):
        if given:
            raise TrainingError(
                f"{name} does not go with FSDP", "leave it out, or train without FSDP"
            )
    plugin.mixed_precision_policy = MixedPrecisionPolicy()


def casting(trainer: Any) -> AbstractContextManager[None]:
    """Autocast around a forward pass with FSDP, as accelerate gives it without.

    It leaves casting to FSDP, which casts all weights, the norms' and the gate's too, and h.
    """
    sharded: bool = trainer.is_fsdp_enabled
    return trainer.accelerator.autocast() if sharded else contextlib.nullcontext()


def asked_in_vain(sharded: bool) -> bool:
    """Says whether FSDP was asked for and is not there: accelerate has none for CPUs."""
    return not sharded and os.environ.get(ASKED, "").lower() in ("true", "1")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Puts a parameter's pieces together; every process must call it. Others are as they are."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(model: nn.Module) -> None:
    """Takes parameters apart again that a forward pass without a backward pass left together.

    Else what the model holds are not the parameters that the optimizer knows.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def gather(
    parameters: Mapping[str, nn.Parameter],
    keep: bool,
    check: Callable[[str, torch.Tensor], None],
) -> dict[str, torch.Tensor]:
    """Puts parameters together, one after the other; every process must call it.

    Args:
        parameters: by name.
        keep: whether this process wants them.
        check: called in every process with each, whole, and its name: what it raises all raise.

    Returns:
        Tensors in the CPU's memory, none where they are not kept.
    """
    gathered: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        tensor = whole(parameter.detach())
        check(name, tensor)
        if keep:
            gathered[name] = tensor.cpu().contiguous()
    return gathered


def put(parameter: nn.Parameter, value: torch.Tensor) -> None:
    """Copies a whole tensor into a parameter, or its piece into a piece; every process calls it."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(parameter, DTensor):
        mesh, placements = parameter.device_mesh, parameter.placements
        value = distribute_tensor(value.to(parameter.device), mesh, placements)
    with torch.no_grad():
        parameter.copy_(value)


def save_optimizer(trainer: Any, folder: str) -> None:
    """Saves the optimizer, put together, and the schedule; every process must call it."""
    from accelerate.utils import save_fsdp_optimizer

    accelerator = trainer.accelerator
    plugin = accelerator.state.fsdp_plugin
    save_fsdp_optimizer(plugin, accelerator, trainer.optimizer, trainer.model, folder)
    if trainer.args.should_save:
        torch.save(trainer.lr_scheduler.state_dict(), Path(folder) / "scheduler.pt")


def check_sharded(folder: str, sharded: bool) -> None:
    """Refuses to go on with FSDP from a state saved without, or the other way round.

    Raises:
        TrainingError: it was; their optimizers are saved differently.
    """
    before = (Path(folder) / "optimizer.bin").is_file()
    if before != sharded:
        was, now = ("with" if one else "without" for one in (before, sharded))
        raise TrainingError(
            f"{folder} was saved {was} FSDP, and this run goes on {now}",
            "go on as it began, or start over in another folder",
        )
