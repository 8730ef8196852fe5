"""The NVIDIA GPU of this machine, asked of the CUDA driver itself, and the packages that use it."""

from __future__ import annotations

import ctypes
import dataclasses
import sys
from importlib.util import find_spec
from typing import Any

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_NAME_BYTES = 256
INSTALL_BINDINGS = "pip install cuda-bindings"
# Two packages bring the module onnxruntime, each overwrites the other's files, and removing one
# breaks the other: both go first.
INSTALL_CUDA = (
    "pip uninstall -y onnxruntime onnxruntime-gpu && "
    'pip install "onnxruntime-gpu[cuda,cudnn]" cuda-bindings'
)


@dataclasses.dataclass(frozen=True)
class Gpu:
    """The first GPU that CUDA shows this process.

    Attributes:
        name: as the driver gives it.
        compute_capability: such as "8.9".
        memory_bytes: its memory.
        cuda: the newest CUDA version its driver runs, such as "13.0".
    """

    name: str
    compute_capability: str
    memory_bytes: int
    cuda: str


def has_cuda_bindings() -> bool:
    """Whether the CUDA runtime's Python package is installed; the backends cuda and trt need it."""
    try:
        return find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:  # nothing of the name cuda
        return False


def load_driver() -> Any:
    """The CUDA driver's library, or None where there is none."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None


def describe_gpu(driver: Any = None) -> Gpu | None:
    """The GPU that CUDA would use here, or None without a driver or a GPU.

    Args:
        driver: a library with the CUDA driver API; None loads the machine's.

    Source: CUDA driver API, sections "Initialization" and "Device Management".
    """
    driver = load_driver() if driver is None else driver
    if driver is None:
        return None
    number = ctypes.c_int()
    device, count = ctypes.c_int(), ctypes.c_int()
    found = (
        driver.cuInit(0) == 0
        and driver.cuDriverGetVersion(ctypes.byref(number)) == 0
        and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        and count.value > 0
        and driver.cuDeviceGet(ctypes.byref(device), 0) == 0
    )
    if not found:
        return None
    name = ctypes.create_string_buffer(_NAME_BYTES)
    driver.cuDeviceGetName(name, _NAME_BYTES, device)
    memory = ctypes.c_size_t()
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = [ctypes.c_int(), ctypes.c_int()]
    for value, attribute in zip(capability, (_MAJOR, _MINOR), strict=True):
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{capability[0].value}.{capability[1].value}",
        memory_bytes=memory.value,
        cuda=f"{number.value // 1000}.{number.value % 1000 // 10}",
    )
