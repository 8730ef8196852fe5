"""Which TensorRT can build plans for the GPU of the machine that the tests run on."""

from __future__ import annotations

from export.tensorrt.child import known_capabilities
from runtime.backends.machine import find_machine
from runtime.backends.trt_flavours import load_module


def find_builders() -> list[str]:
    """Those flavours, as `--trt` takes them; none where CUDA shows no GPU."""
    machine = find_machine()
    if machine.gpu is None:
        return []
    found = []
    for installed in machine.installed:
        known = known_capabilities(load_module(installed))
        if not known or machine.gpu.compute_capability in known:
            found.append(installed.flavour.option)
    return found
