"""The GPUs, the TensorRTs and the graph that plans are built for, and where they can be built."""

from __future__ import annotations

import platform
import sys

import pytest

from export.tensorrt.builder import GraphFacts
from runtime.backends.gpu import Gpu
from runtime.backends.trt_flavours import RTX, TENSORRT, Installed
from tests.support.tiny import MAX_DEPTH

FACTS = GraphFacts(max_depth=MAX_DEPTH, default_depth=3, max_positions=512, precision="fp32")
GPU = Gpu("NVIDIA GeForce RTX 4090", "8.9", 24 << 30, "13.0")
HOPPER = Gpu("NVIDIA H100", "9.0", 80 << 30, "13.0")
HERE = Installed(RTX, "tensorrt_rtx_bindings", "1.7.1.116", "1.7.1.116", "13")
CENTRE = Installed(TENSORRT, "tensorrt", "10.14.1", "10.14.1", "13")
PLANS = "plans"

builds = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="TensorRT for RTX has wheels for Linux on x86-64 only",
)
