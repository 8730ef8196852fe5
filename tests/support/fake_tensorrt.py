"""Stands for the module `tensorrt` in the process that builds; `fake_cuda` for the one that runs.

A plan is the graph it was built from, weights and all. ONNX Runtime can run it.
"""

from __future__ import annotations

import enum
import json
import secrets
import types
from typing import Any

import onnx

__version__ = "10.14.1"
float32, float16, bfloat16 = "float32", "float16", "bfloat16"
_TYPES = {1: float32, 10: float16, 16: bfloat16}  # TensorProto's numbers
_CACHE = b"a timing cache:"


class ILogger:
    Severity = types.SimpleNamespace(ERROR=1)


class IStreamWriter:
    pass


class IProgressMonitor:
    pass


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(enum.Enum):
    TF32 = "tf32"
    REFIT_INDIVIDUAL = "refit"


class LayerType(enum.Enum):
    CONSTANT = "constant"


class TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content or _CACHE

    def serialize(self) -> bytes:
        return self.content


class BuilderConfig:
    """An IBuilderConfig. Refuses a cache of another TensorRT, as the real one does."""

    def __init__(self) -> None:
        self.flags: set[BuilderFlag] = set()
        self.profiles = 0
        self._cache: TimingCache | None = None

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles += 1
        return self.profiles - 1

    def create_timing_cache(self, content: bytes) -> TimingCache:
        return TimingCache(content)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        if not cache.content.startswith(_CACHE):
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self._cache


class Network:
    """An INetworkDefinition with a constant layer for every initializer."""

    def __init__(self) -> None:
        self.model = onnx.ModelProto()
        self.marked: list[str] = []

    @property
    def _weights(self) -> list[onnx.TensorProto]:
        return [one for graph in graphs_of(self.model) for one in graph.initializer]

    @property
    def num_layers(self) -> int:
        return len(self._weights)

    def get_layer(self, index: int) -> Any:
        weight = self._weights[index]
        output = types.SimpleNamespace(dtype=_TYPES.get(weight.data_type))
        return types.SimpleNamespace(
            name=weight.name, type=LayerType.CONSTANT, get_output=lambda _: output
        )

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input)

    def get_input(self, index: int) -> Any:
        value = self.model.graph.input[index]
        sizes = value.type.tensor_type.shape.dim
        shape = [-1 if size.dim_param else size.dim_value for size in sizes]
        return types.SimpleNamespace(name=value.name, shape=shape)

    def mark_weights_refittable(self, name: str) -> bool:
        self.marked.append(name)
        return True


class OnnxParser:
    def __init__(self, network: Network, logger: Any) -> None:
        self._network = network

    def parse_from_file(self, file: str) -> bool:
        self._network.model = onnx.load(file)
        return True


class Builder:
    def __init__(self, logger: Any) -> None:
        pass

    def create_network(self, flags: int) -> Network:
        return Network()

    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig()

    def create_optimization_profile(self) -> Any:
        return types.SimpleNamespace(set_shape=lambda *_: None, set_shape_input=lambda *_: None)

    def build_serialized_network_to_stream(
        self, network: Network, config: BuilderConfig, writer: Any
    ) -> bool:
        cache = config.get_timing_cache()
        if cache is None:
            return False
        cache.content += b" one build"
        marked = network.marked if BuilderFlag.REFIT_INDIVIDUAL in config.flags else []
        facts = {"refittable": json.dumps(marked), "build": secrets.token_hex(8)}
        for key, value in facts.items():
            network.model.metadata_props.add(key=key, value=value)
        return bool(writer.write(network.model.SerializeToString()))


class Logger(ILogger):
    ERROR = 1

    def __init__(self, severity: int) -> None:
        pass


class Engine:
    """An ICudaEngine."""

    def __init__(self, plan: bytes) -> None:
        self.model = onnx.load_model_from_string(plan)
        self.facts = {one.key: one.value for one in self.model.metadata_props}

    def serialize(self) -> bytes:
        return self.model.SerializeToString()


class Runtime:
    def __init__(self, logger: Any) -> None:
        pass

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        return Engine(plan) if plan else None


class Refitter:
    def __init__(self, engine: Engine, logger: Any) -> None:
        self.engine = engine
        self.given: dict[str, onnx.TensorProto] = {}

    def get_all_weights(self) -> list[str]:
        return list(json.loads(self.engine.facts["refittable"]))

    def get_missing_weights(self) -> list[str]:
        return sorted(set(self.get_all_weights()) - self.given.keys())

    def refit_cuda_engine(self) -> bool:
        for graph in graphs_of(self.engine.model):
            for weight in graph.initializer:
                if weight.name in self.given:
                    weight.CopyFrom(self.given[weight.name])
        return True


class OnnxParserRefitter:
    """Passes over weights that the plan holds fixed, as the real one does."""

    num_errors = 0

    def __init__(self, refitter: Refitter, logger: Any) -> None:
        self._refitter = refitter

    def refit_from_file(self, file: str) -> bool:
        wanted = set(self._refitter.get_all_weights())
        for graph in graphs_of(onnx.load(file)):
            self._refitter.given |= {w.name: w for w in graph.initializer if w.name in wanted}
        return self._refitter.given.keys() == wanted


def graphs_of(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    """The graph and the bodies of its loops."""
    bodies = [
        attribute.g
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.type == onnx.AttributeProto.GRAPH
    ]
    return [model.graph, *bodies]
