"""What a training run is made of, from flags or a recipe file."""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ouroboros.errors import TrainingError
from ouroboros.model.integer_blocks import BLOCKS
from ouroboros.model.trainable import CODA_CHOICES, EMBEDDING_CHOICES, RECURRENT_CHOICES
from runtime.errors import errors_as
from runtime.options import flag_of, option

PRECISIONS = ("fp32", "bf16")
STATE_DTYPES = ("float16", "float32")
SCHEDULERS = ("cosine", "linear", "constant")
DRAWS = ("uniform", "inverse")
QAT_KINDS = ("none", "int4", "int8")
MAX_SEED = 2**32 - 1  # numpy's
MAX_LEARNING_RATE = 1e30  # Adam's first steps multiply it by up to 10, in float32
MAX_WHOLE = 2**31 - 1
MAX_DRAWN = 2**53  # windows of a run, counted in all its processes
MAX_STATE_CACHE_GB = 1e9
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # what no path and no name holds


@dataclass(frozen=True)
class TrainOptions:
    """Options of one training run.

    There is no wall-clock budget: a run that ends by the clock cannot be resumed exactly.
    """

    data: tuple[Path, ...] = option(
        (), "training text: .txt, .jsonl (also compressed), .parquet or a folder; repeatable"
    )
    eval: tuple[Path, ...] = option(
        (), "held-out text, scored while training, never trained on; repeatable"
    )
    depth: str = option("1-16", "one depth, or a range to draw one from for every train step")
    depth_draw: str = option(
        "uniform", "how it is drawn: uniform, or inverse, a depth d as often as 1 / d"
    )
    depth_curriculum: int = option(
        0, "train steps in which the greatest drawn depth grows from the range's least; 0: none"
    )
    depth_term: float = option(
        0.0, "weight of a term that asks a deeper read-out to be no worse than a shallower one"
    )
    backprop_steps: int = option(
        0, "steps of the loop that gradients go back through, counted from its end; 0: all"
    )
    train_steps: int = option(300, "optimizer steps")
    batch_size: int = option(4, "windows a micro-batch, in every process")
    grad_accum: int = option(1, "micro-batches a train step")
    seq_len: int = option(256, "tokens a window")
    learning_rate: float = option(1e-3, "the highest one, of Controller, step norms, bridge")
    warmup: int = option(10, "train steps in which it rises")
    scheduler: str = option("cosine", "then, counted in train steps: cosine, linear or constant")
    weight_decay: float = option(0.0, "AdamW's, on matrices only")
    max_grad_norm: float = option(1.0, "clip gradients to this norm; 0 does not")
    seed: int = option(0, "of data order, drawn depths and dropout")
    eval_every: int = option(50, "train steps between two scores; 0: at start and end only")
    eval_depths: tuple[int, ...] = option(
        (), "depths to score, like 1,8,16; default: of --depth its ends and middle", "--eval-depth"
    )
    eval_windows: int = option(4, "windows a held-out file")
    save_every: int = option(50, "train steps between saved states")
    precision: str = option("fp32", "fp32, or bf16 with float32 weights")
    compile: bool = option(
        False,
        "compile layers, loop and loss, which takes a minute at the start: for long runs; on a CPU "
        "it needs a compiler of C++",
        "--compile/--no-compile",
    )
    recompute: bool = option(
        False,
        "compute inner states of steps and last layers twice, not to keep them: saves memory",
        "--recompute/--no-recompute",
    )
    train_coda: str = option(
        "frozen", "of the last layers train: frozen, norms, lora (norms and adapters) or full"
    )
    train_recurrent: str = option("frozen", "of the looped layers train: frozen, lora or full")
    train_embedding: str = option("frozen", "embedding and LM head: frozen or full")
    adapter_rank: int = option(64, "of lora: the rank of an adapter")
    adapter_alpha: float = option(64.0, "of lora: adapters are scaled by this over their rank")
    layer_learning_rate: float = option(
        0.0, "the highest one of last and looped layers and embedding; 0: --learning-rate"
    )
    gate_learning_rate: float = option(
        0.0, "the highest one of the gate; 0: a tenth of --learning-rate"
    )
    teacher: str = option(
        "", "to distil from: the original by hub id, directory or .gguf, or an ouro checkpoint"
    )
    distill: float = option(
        0.5, "share of the teacher's KL in the loss; the cross-entropy has the rest"
    )
    temperature: float = option(1.0, "of the teacher's and the student's distribution in the KL")
    state_cache: str = option(
        "", "compute prelude and teacher once and keep their states in this folder, which runs "
        "share; auto: in ~/.cache/ouroboros"
    )  # fmt: skip
    state_cache_gb: float = option(20.0, "the most that all kept states may take on disk")
    state_dtype: str = option("float16", "how states are kept: float16 or float32")
    qat: str = option(
        "none", "train for integer weights: none, int4 or int8; every matrix is used as rounded"
    )
    qat_block: int = option(32, "weights that share a scale there: 32, 64 or 128")
    qat_symmetric: bool = option(
        False,
        "without zero points there, as TensorRT needs them",
        "--qat-symmetric/--qat-asymmetric",
    )

    def __post_init__(self) -> None:
        """Validates every value.

        Raises:
            TrainingError: A value is not allowed; the message names it and what is.
        """
        if not self.data:
            raise TrainingError("no training text", "give --data FILE or folder")
        for name, least in (
            ("train_steps", 1), ("batch_size", 1), ("grad_accum", 1), ("seq_len", 2), ("warmup", 0),
            ("seed", 0), ("eval_every", 0), ("eval_windows", 1), ("save_every", 1),
            ("adapter_rank", 1), ("depth_curriculum", 0), ("backprop_steps", 0),
        ):  # fmt: skip
            given = getattr(self, name)
            if given < least:
                raise TrainingError(f"{name}={given} is not allowed", f"give {least} or more")
            if given > MAX_WHOLE and name != "seed":
                raise TrainingError(f"{name}={given} is not allowed", f"give at most {MAX_WHOLE}")
        if self.seed > MAX_SEED:
            raise TrainingError(f"seed={self.seed} is not allowed", f"give 0..{MAX_SEED}")
        drawn = self.train_steps * self.batch_size * self.grad_accum
        if drawn > MAX_DRAWN:
            raise TrainingError(
                f"train_steps={self.train_steps} of batch_size={self.batch_size} times "
                f"grad_accum={self.grad_accum} draw {drawn:,} windows",
                f"give less: {MAX_DRAWN:,} are the most",
            )
        if not 0 < self.learning_rate <= MAX_LEARNING_RATE:
            raise TrainingError(
                f"learning_rate={self.learning_rate} is not allowed",
                f"give more than 0 and at most {MAX_LEARNING_RATE:g} (0.001 is usual)",
            )
        for name in (
            "weight_decay", "max_grad_norm", "layer_learning_rate", "gate_learning_rate",
            "depth_term",
        ):  # fmt: skip
            highest = MAX_LEARNING_RATE if "rate" in name else sys.float_info.max
            if not 0 <= getattr(self, name) <= highest:
                at_most = f", at most {highest:g}" if "rate" in name else ""
                raise TrainingError(
                    f"{name}={getattr(self, name)} is not allowed", f"give 0 or more{at_most}"
                )
        for name, choices in (
            ("precision", PRECISIONS), ("scheduler", SCHEDULERS), ("train_coda", CODA_CHOICES),
            ("train_recurrent", RECURRENT_CHOICES), ("train_embedding", EMBEDDING_CHOICES),
            ("depth_draw", DRAWS), ("state_dtype", STATE_DTYPES), ("qat", QAT_KINDS),
            ("qat_block", BLOCKS),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                raise TrainingError(
                    f"{name}={getattr(self, name)!r} is unknown",
                    f"choose one of {', '.join(map(str, choices))}",
                )
        if not 0 <= self.distill <= 1:
            raise TrainingError(f"distill={self.distill} is not allowed", "give a share, 0 to 1")
        if not 0 < self.temperature < float("inf"):
            raise TrainingError(
                f"temperature={self.temperature} is not allowed", "give more than 0; 1 is usual"
            )
        for name, highest in (
            ("adapter_alpha", sys.float_info.max), ("state_cache_gb", MAX_STATE_CACHE_GB),
        ):  # fmt: skip
            if not 0 < getattr(self, name) <= highest:
                raise TrainingError(
                    f"{name}={getattr(self, name)} is not allowed",
                    f"give more than 0, at most {highest:g}",
                )
        for depth in (*self.depth_range, *self.eval_depths):
            if depth < 1:
                raise TrainingError(f"depth={depth} is not allowed", "the least is 1")
        self._refuse_contradictions()

    def _refuse_contradictions(self) -> None:
        """Refuses what would be without effect. A default that was spelt out can't be told."""
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        layers = {self.train_coda, self.train_recurrent, self.train_embedding}
        for names, given, what, flag in (
            (("distill", "temperature"), self.teacher, "of distillation, and there is no teacher",
             "--teacher"),
            (("state_cache_gb", "state_dtype"), self.state_cache,
             "of kept states, and none are kept", "--state-cache"),
            (("qat_block", "qat_symmetric"), self.qat != "none",
             "of training for integers, and qat is none", "--qat"),
            (("adapter_rank", "adapter_alpha"), self.adapted, "of adapters, and none trains",
             "--train-coda lora or --train-recurrent lora"),
        ):  # fmt: skip
            for name in names:
                value = getattr(self, name)
                if not given and value != usual[name]:
                    raise TrainingError(
                        f"{name}={value} is {what}",
                        f"give {flag}, or leave {flag_of(type(self), name)} out",
                    )
        if self.train_embedding != "frozen" and self.state_cache:
            raise TrainingError(
                "an embedding that trains changes the states behind the prelude, and they are to "
                "be kept",
                "leave --state-cache out, or --train-embedding",
            )
        if self.teacher and not self.distill:
            raise TrainingError("distill=0.0 makes no use of a teacher", "leave one of the two out")
        if self.layer_learning_rate and layers == {"frozen"}:
            raise TrainingError(
                f"layer_learning_rate={self.layer_learning_rate} is of layers of the original "
                "that train, and none does",
                "give --train-coda, --train-recurrent or --train-embedding, or leave it out",
            )
        for name in ("depth_curriculum", "depth_term", "depth_draw"):
            value = getattr(self, name)
            if value != usual[name] and self.depth_range[0] == self.depth_range[1]:
                raise TrainingError(
                    f"{name}={value} is of a range, and depth={self.depth} is one depth",
                    f"give a range like --depth 1-{max(2, self.depth_range[1])}, or leave "
                    f"{flag_of(type(self), name)} out",
                )
        if self.depth_curriculum > self.train_steps:
            raise TrainingError(
                f"depth_curriculum={self.depth_curriculum} ends after the run",
                f"give at most --train-steps, {self.train_steps}",
            )

    @property
    def adapted(self) -> tuple[str, ...]:
        """Where adapters train: `coda`, `recurrent`, both or neither."""
        places = {"coda": self.train_coda, "recurrent": self.train_recurrent}
        return tuple(place for place, choice in places.items() if choice == "lora")

    @property
    def depth_range(self) -> tuple[int, int]:
        """The least and the greatest depth trained.

        Raises:
            TrainingError: `depth` is neither a number nor a range.
        """
        low, dash, high = self.depth.partition("-")
        try:
            first, last = int(low), int(high if dash else low)
        except ValueError:
            first, last = 1, 0
        if first > last:
            raise TrainingError(
                f"depth={self.depth!r:.80} is no depth", "give a number like 8 or a range like 1-16"
            )
        return first, last

    @property
    def scored_depths(self) -> tuple[int, ...]:
        """The depths held-out text is scored at while training, ascending."""
        low, high = self.depth_range
        return tuple(sorted(set(self.eval_depths or (low, (low + high) // 2, high))))

    @property
    def loss_terms(self) -> str:
        """What the training loss is made of; "" where it is the cross-entropy alone."""
        share = self.distill if self.teacher else 0.0
        terms = [(1 - share, "CE"), (share, "KL"), (self.depth_term, "depth term")]
        named = [f"{weight:g} {name}" for weight, name in terms if weight]
        return "" if named == ["1 CE"] else " + ".join(named)

    def exactness(self) -> dict[str, Any]:
        """Returns the options on which the final weights depend, as JSON values.

        Paths are not among them (the data is compared by its tokens), nor is how often the run
        is scored and saved. A run adds what it finds around it: the checkpoint, the data, the
        number of processes, and which states it reads from disk and how precise they are.
        """
        free = {"data", "eval", "eval_every", "eval_depths", "eval_windows", "save_every"}
        free |= {"state_cache", "state_cache_gb", "state_dtype", "recompute"}
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in free}


def read_recipe(path: Path) -> dict[str, Any]:
    """Reads a .toml or .yaml file of training options.

    Raises:
        TrainingError: The file can't be read, or has a key or value that is no option.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path}: can't read the recipe ({error})", "check the path") from error
    if path.suffix == ".toml":
        with errors_as(TrainingError, f"{path}: not TOML", "mend the recipe"):
            content: Any = tomllib.loads(text)
    elif path.suffix in (".yaml", ".yml"):
        from ouroboros.training.strict_yaml import read_yaml  # only this needs yaml

        with errors_as(TrainingError, f"{path}: not YAML", "mend the recipe"):
            content = read_yaml(text)
    else:
        raise TrainingError(f"{path}: a recipe is a .toml, .yaml or .yml file", "rename it")
    if not isinstance(content, dict):
        raise TrainingError(
            f"{path}: a recipe is a table of options, like `train_steps: 300`", "mend the recipe"
        )
    return {name: _convert(name, value, path) for name, value in content.items()}


def make_options(flags: Mapping[str, Any], recipe: Path | None = None) -> TrainOptions:
    """Builds the options from a recipe file and flags; a flag that is not None wins.

    Raises:
        TrainingError: As `read_recipe` and `TrainOptions`.
    """
    values = read_recipe(recipe) if recipe is not None else {}
    values |= {name: value for name, value in flags.items() if value is not None}
    return TrainOptions(**{"data": (), **values})


def _convert(name: str, value: Any, path: Path) -> Any:
    """Returns an option's value as a recipe gives it: of its own type, and of no other."""
    import msgspec

    kinds = typing.get_type_hints(TrainOptions)
    if name not in kinds:
        near = difflib.get_close_matches(str(name), kinds, 1)
        cure = f"did you mean {near[0]}?" if near else f"the options are {', '.join(sorted(kinds))}"
        raise TrainingError(f"{path}: unknown option {name!r}", cure)
    kind = kinds[name]
    given = value
    if any(isinstance(one, str) and _NO_TEXT.search(one) for one in _items(value)):
        raise TrainingError(
            f"{path}: {name}={value!r:.80} holds NUL or half a surrogate pair", "mend the recipe"
        )
    if typing.get_origin(kind) is tuple:
        given = _items(value)
    if name == "depth" and type(value) is int:
        given = str(value)

    def read_path(wanted: type, text: Any) -> Path:
        if not isinstance(text, str):
            raise TypeError  # msgspec makes it a ValidationError
        return path.parent / text

    try:
        # Not strict for numbers: YAML reads 1e-3 as a text.
        return msgspec.convert(given, kind, strict=kind is not float, dec_hook=read_path)
    except msgspec.ValidationError as error:
        raise TrainingError(
            f"{path}: {name}={value!r:.80} is not {_describe(kind)}", "mend the recipe"
        ) from error


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _describe(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    names[Path] = "a path"
    if typing.get_origin(kind) is tuple:
        item = names[typing.get_args(kind)[0]]
        return f"{item}, or a list of them"
    return names[kind]
