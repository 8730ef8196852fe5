"""What a manifest says, as frozen dataclasses; `runtime.bundle.manifest` reads them from JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from runtime.bundle.chat import ChatSpec
from runtime.bundle.contract import PRECISIONS, TensorSpec
from runtime.bundle.plans import PlanSpec

FORMAT_VERSION = 4
MANIFEST_NAME = "manifest.json"
CASES_NAME = "cases.safetensors"
HASH_NAME = "manifest.sha256"  # as `sha256sum manifest.json` prints it
POOLINGS = ("causal", "mean", "token")
BRIDGES = ("none", "entry", "exit")
HALTERS = ("trained", "confidence", "distance")


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Dimensions of the model.

    `bridge` says where a linear map stands beside the loop, `recurrent_layers` how many layers the
    loop runs in each step, `halting` whether the graph can choose its depth (`halt_threshold`,
    `depth_used`). `step_bytes` and `once_bytes` are what a token reads of the weights as they are
    stored: in every step of the loop, and in everything around it.
    """

    source: str
    model_type: str
    hidden_size: int
    num_layers: int
    prelude: int
    coda: int
    recurrent_layers: int
    bridge: str
    halting: bool
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    pooling: str
    parameters: int
    step_bytes: int
    once_bytes: int


@dataclasses.dataclass(frozen=True)
class HaltingSpec:
    """How the graph chooses a depth.

    `kind` is what its halting score is, `threshold` the one to take where a request names none,
    and `max` the most steps to let it choose from.
    """

    kind: str
    threshold: float
    max: int


@dataclasses.dataclass(frozen=True)
class DepthSpec:
    """The depths a bundle accepts, its default, and those the model was trained at.

    `halting` is there where `model.halting` is true, and only there.
    """

    min: int
    max: int
    default: int
    trained: tuple[int, ...]
    halting: HaltingSpec | None = None


@dataclasses.dataclass(frozen=True)
class GraphSpec:
    """The ONNX file, the files that hold its large weights, and its tensors."""

    file: str
    data: tuple[str, ...]
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclasses.dataclass(frozen=True)
class GraphsSpec:
    """The graphs of a bundle by flavour."""

    onnx: GraphSpec


@dataclasses.dataclass(frozen=True)
class TokenizerSpec:
    """Tokenizer file, chat template and special tokens.

    `prefix_token_ids` go before every text that begins a sequence. `chat` is the chat template as
    plain data, null where there is none or it can't be had so.
    """

    file: str
    chat_template: str | None
    chat: ChatSpec | None
    bos_token: str | None
    eos_token: str | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    prefix_token_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class SamplingSpec:
    """Sampling used where a request names none.

    temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and repetition_penalty 1 are off.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float


@dataclasses.dataclass(frozen=True)
class QuantizationSpec:
    """How integer weights were made, and the arithmetic that the engine runs them in.

    bits: of the matrices that bear it; sensitive_bits: of those whose errors cost most, among them
        embedding, LM head and all of the looped layers.
    method: "rtn" (round to nearest) or "gptq".
    calibration: sha256 of the calibration tokens; None for "rtn".
    accuracy_level: ONNX Runtime's for MatMulNBits: 1 float32, 4 8-bit activations.
    """

    bits: int
    sensitive_bits: int
    block: int
    symmetric: bool
    method: str
    calibration: str | None
    accuracy_level: int


@dataclasses.dataclass(frozen=True)
class ParitySpec:
    """The bounds of the parity check, and the type of PyTorch's recorded outputs.

    relative_l2: on the error against PyTorch in float64. Where it is more, three times the error
        that PyTorch's own float32 makes is allowed too; of a half-precision bundle, case by case,
        twice the error that PyTorch makes at that precision.
    kl: in nats, on what the engine's fast arithmetic may add; None where it has none.
    """

    relative_l2: float
    kl: float | None
    float: str


@dataclasses.dataclass(frozen=True)
class FileSpec:
    """Hash and size of one file."""

    sha256: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class CheckpointSpec:
    """The checkpoint a bundle was exported from."""

    sha256: str
    name: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Everything a bundle says about itself."""

    format_version: int
    model: ModelSpec
    depth: DepthSpec
    precision: str
    quantization: QuantizationSpec | None
    graphs: GraphsSpec
    tokenizer: TokenizerSpec
    sampling: SamplingSpec
    parity: ParitySpec
    files: dict[str, FileSpec]
    plans: tuple[PlanSpec, ...]
    checkpoint: CheckpointSpec
    tools: dict[str, str]

    @property
    def cache_dtype(self) -> str:
        """The type of keys and values, such as float32."""
        return PRECISIONS[self.precision].compute

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values."""
        data = dataclasses.asdict(self)
        if self.depth.halting is None:
            del data["depth"]["halting"]
        return data
