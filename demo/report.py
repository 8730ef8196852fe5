"""Puts the figures of the stages together: report.json, and a summary for people."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from demo import settings
from demo.fetch import KINDS


def collect_report(folder: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """Reads what the stages wrote in `folder` and returns the report.

    Args:
        folder: build/demo, with what the stages leave: eval.json, depths.json, parity.json,
            tokens.json, bench.json, ready-eval.json and ready.json.
        seconds: of each stage.
    """
    parity, tokens, bench = (
        _read(folder / f"{name}.json") for name in ("parity", "tokens", "bench")
    )
    scored = _read(folder / "eval.json")
    rows = [*scored["rows"], *_read(folder / "depths.json")["rows"]]
    ready = _read(folder / "ready-eval.json")["rows"]
    machine = bench.pop("machine")
    return {
        "parity": {
            name: parity[name]
            for name in (
                "verdict",
                "worst_relative_l2",
                "reference_error",
                "allowed",
                "depths",
                "ambiguous",
            )
        },
        "tokens": {
            name: value for name, value in tokens.items() if name not in ("rows", "samples")
        },
        "heldout": {row["model"]: _losses(row) for row in scored["rows"]},
        "heldout_by_depth": _by_depth(row for row in rows if row["model"] == "trained"),
        "ready": {
            "heldout": {str(row["depth"]): _losses(row) for row in ready},
            "heldout_by_depth": _by_depth(ready),
            "samples": _read(folder / "ready.json"),
        },
        "bench": bench,
        "export": {"seconds": seconds["export"]},
        "seconds": seconds,
        "samples": tokens["samples"],
        "settings": {
            "convert": settings.CONVERT,
            "train": settings.TRAIN,
            "eval": settings.EVAL | {"--depth": str(settings.DEPTH)},
        },
        "machine": {name: value for name, value in machine.items() if name != "versions"},
        "versions": machine["versions"] | {"python": machine["python"]},
    }


def summarise_report(report: dict[str, Any], folder: str) -> str:
    """The summary that `make demo` ends with.

    Args:
        report: from `collect_report`.
        folder: where everything lies, as shown to the reader.
    """
    parity, tokens, bench = report["parity"], report["tokens"], report["bench"]
    heldout = report["heldout"]
    equal = "all equal" if tokens["equal"] else f"{tokens['different']} DIFFERENT"
    ready = report["ready"]
    where = f"depths {min(parity['depths'])}..{max(parity['depths'])}"
    error = f"{parity['worst_relative_l2']:.1e}"
    own = f"PyTorch's own float32 errs by {parity['reference_error']:.1e}"
    allowed = f"{own}, allowed {parity['allowed']:.1e}"
    compared = f"{tokens['prompts']} prompts at depths {', '.join(map(str, tokens['depths']))}"
    ties = tokens["ties"]
    first, last = settings.PRELUDE, settings.CODA
    between = settings.LAYERS - first - last
    minutes = report["seconds"]["train"] / 60
    happened = textwrap.fill(
        f"What happened: SmolLM2-135M-Instruct has {settings.LAYERS} layers. Its first {first} and "
        f"last {last} were kept, the {between} between became ONE layer that is looped `depth` "
        f"times and steered by a small Controller. It was trained for {minutes:.1f} minutes, "
        "compiled to one ONNX graph, and run without PyTorch.",
        100,
    )
    machine = report["machine"]
    own_share = f"{bench['engine_overhead']:.1%} of a token's time is our own code"
    return f"""\
{happened}

How well it reads unseen text (next-token loss in nats, mean of {len(KINDS)} texts; lower is better)
{_heldout_lines(heldout | {"ready": ready["heldout"][str(settings.DEPTH)]})}
  Trained, by depth: {_depth_list(report["heldout_by_depth"])}.
  Ready, by depth: {_depth_list(ready["heldout_by_depth"])}.

The same weights at four depths, continuing "{settings.SHOWN_PROMPT}" (sampled)
{_sample_lines(settings.SHOWN_PROMPT, report["samples"])}
  A few minutes of training make a start, not a good model.

The ready model ({settings.READY}), likewise
{chr(10).join(_sample_lines(prompt, texts) for prompt, texts in ready["samples"].items())}

Is the compiled model the trained model?
  parity      {parity["verdict"]}: the logits err by {error} at most, {where}
              ({allowed}; all against PyTorch in float64)
  tokens      {equal}: {tokens["total"]} from PyTorch and the engine, {compared}; {ties} ties

How fast (depth {bench["depth"]}, one sequence, {bench["threads"]} threads)
  engine      {bench["tokens_per_s"]:.1f} tokens/s; PyTorch eager with its cache takes \
{bench["decode_ratio_to_pytorch"]:.1f} times as long
  the loop    takes {bench["loop_ratio_to_unrolled"]:.2f} times as long as the graph written out
  long text   at 1,024 tokens of context {bench["speed_at_1024_to_64"]:.2f} of the speed at 64
  memory      {bench["memory_share"]:.0%} of the speed that reading the weights allows; {own_share}
  on          {machine["processor"]}, {machine["cores"]} cores

Where it lies
  {folder}/converted, trained, bundle    the model after each step
  {folder}/ready, ready-bundle           the ready model
  {folder}/trained/training.png          loss while training; gate.png: how much each step changes
  {folder}/parity.png                    worst error by depth and position
  {folder}/report.json                   every figure
Next: .venv/bin/ouro run {folder}/ready-bundle "your prompt" --depth {settings.DEPTH}"""


def _heldout_lines(heldout: dict[str, dict[str, float]]) -> str:
    titles = {
        "full": f"the original, all {settings.LAYERS} layers",
        "dropped": f"{settings.PRELUDE} + 1 + {settings.CODA} layers, the rest left out",
        "converted": "converted, not trained yet",
        "trained": "converted and trained",
        "ready": "the ready model, trained for longer",
    }
    return "\n".join(f"  {heldout[name]['mean']:6.3f}  {title}" for name, title in titles.items())


def _losses(row: Mapping[str, Any]) -> dict[str, float]:
    """Mean and kinds of a row of `ouro eval --json`."""
    return {"mean": row["mean"], **{kind: row["texts"][kind] for kind in KINDS}}


def _by_depth(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    return {str(row["depth"]): row["mean"] for row in sorted(rows, key=lambda row: row["depth"])}


def _depth_list(losses: Mapping[str, float]) -> str:
    return ", ".join(f"{loss:.2f} at {depth}" for depth, loss in losses.items())


def _sample_lines(prompt: str, texts: Mapping[str, str]) -> str:
    """Continuations of a prompt, a paragraph a depth."""
    return "\n".join(
        textwrap.fill(
            " ".join(f"{prompt}{text}".split()),
            96,
            initial_indent=f"  depth {depth:>2}  ",
            subsequent_indent=" " * 12,
        )
        for depth, text in texts.items()
    )


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
