"""What the command line says when something goes wrong: one line, and an exit status."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cli import interrupts
from runtime.errors import CommandError as CommandError
from runtime.errors import OuroError

INTERRUPTED = 130  # 128 + SIGINT, as shells count

# Which extra brings a module that the base installation lacks.
EXTRAS = {
    "torch": "train",
    "transformers": "train",
    "huggingface_hub": "train",
    "accelerate": "train",
    "pyarrow": "train",
    "gguf": "train",
    "sentencepiece": "train",
    "google": "train",
    "tensorboard": "train",
    "msgspec": "train",
    "yaml": "train",
    "peft": "train",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "ml_dtypes": "export",
    "matplotlib": "plot",
}
# torch has a full memory in exceptions of its own, on a GPU and on the CPU.
NO_MEMORY = ("CUDA out of memory", "DefaultCPUAllocator: can't allocate memory")
# safetensors, torch and numpy report a full disk in exceptions of their own.
FULL_DISK = ("No space left on device", "os error 28", "PytorchStreamWriter failed writing")
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")


def visible(text: str) -> str:
    """Returns a text with its control characters written out, which would steer a terminal."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def describe(error: BaseException) -> str | None:
    """Returns the one line to print for an error a user can act on; None for a bug of ours.

    Args:
        error: what a command raised.
    """
    if _is_full_disk(error):
        return (
            "no space left on the disk; free some and run the command again "
            "(what stood at the destination before is unchanged)"
        )
    match error:
        case ModuleNotFoundError(name=str(name)) if name.partition(".")[0] in EXTRAS:
            module = name.partition(".")[0]
            return (
                f'{module} is not installed; run pip install ".[{EXTRAS[module]}]" in the checkout '
                "of ouroboros"
            )
        case OuroError():
            return " ".join(str(error).split())
        case OSError(strerror=str(reason), filename=name) if name is not None:
            return f"{name}: {reason}"
        case MemoryError():
            return "out of memory; close other programs or use a smaller model"
        case RuntimeError() if any(sign in str(error) for sign in NO_MEMORY):
            return (
                "out of memory; close other programs, or give less at a time: for `ouro train` a "
                "smaller --batch-size with more --grad-accum, or --recompute (--plan tells what a "
                "run needs)"
            )
        case _:
            return None


@contextmanager
def one_line_errors(debug: bool = False) -> Iterator[None]:
    """Ends the process with one line on stderr where the block raises a known error or Ctrl-C.

    Args:
        debug: let everything through, for its traceback.

    Raises:
        SystemExit: with 1 after an error was printed, 130 after Ctrl-C.
    """
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        if debug:
            raise
        # An import that Ctrl-C breaks off may end in an error of another kind.
        if interrupts.received or any(isinstance(one, KeyboardInterrupt) for one in _chain(error)):
            sys.stderr.write("interrupted\n")
            raise SystemExit(INTERRUPTED) from None
        line = describe(error)
        if line is None:
            raise
        sys.stderr.write(f"error: {visible(line)}\n")
        raise SystemExit(1) from None


def _is_full_disk(error: BaseException) -> bool:
    return any(
        (isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT))
        or any(sign in str(one) for sign in FULL_DISK)
        for one in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, each once, as far as a traceback would show."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        hidden = current.__suppress_context__
        current = current.__cause__ or (None if hidden else current.__context__)
