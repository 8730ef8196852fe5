"""Held-out loss against mean depth: halters that choose a depth, beside fixed depths.

python -m bench.halting CHECKPOINT --data FILE... --text FILE... [--depth N] [--json FILE]

Each window's first half is the prompt on which a depth is chosen, the loss is that of its second
half, all of it run at that depth. The trained halter is fitted on --data, and so are the
thresholds; the curves are of --text, at thresholds spread over all scores. Hindsight takes for
every window what was best: no halter can do better.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from bench.measure import PACKAGES, make_parser
from cli.errors import CommandError, one_line_errors
from cli.output import require_writable, write_json
from ouroboros.halting.fit import Choice, choose_at, sweep
from ouroboros.halting.observe import Observations, chosen_depths, halting_scores, join, observe
from ouroboros.halting.options import KINDS, HalterOptions
from ouroboros.halting.run import choose_depth, choose_halter, choose_windows, prompt_ends
from ouroboros.model.halting import Halter
from ouroboros.model.modeling import OuroborosForCausalLM
from runtime.measure.speed import describe_machine

TOLERANCE = 5e-4  # nats; losses closer than this are called equal


@dataclass(frozen=True)
class Curve:
    """What one way of choosing a depth gives on the held-out windows.

    Attributes:
        kind: the halter's.
        chosen: at the threshold that was chosen on the training text.
        gain: loss of the best fixed depth less that of `chosen`, nats, by window: the mean, and
            half of its 95 % interval.
        points: at every threshold tried, the shallowest first.
        loss_at_best: at the best fixed depth's mean depth, between the points beside it; None
            where the curve has none there.
        depth_at_equal: the least mean depth whose loss is at most the best fixed depth's, None
            where no point's is; picked with hindsight.
    """

    kind: str
    chosen: Choice
    gain: tuple[float, float]
    points: tuple[Choice, ...]
    loss_at_best: float | None
    depth_at_equal: float | None


@dataclass(frozen=True)
class Ideal:
    """What hindsight would choose for every window at a price of a step, and what that gives."""

    price: float
    depth: float
    loss: float


@dataclass(frozen=True)
class Study:
    """All of it.

    Attributes:
        fixed: loss by depth, depth 1 first.
        by_text: the same of each text.
        best: the fixed depth of the least loss.
        curves: one a halter.
        hindsight: what the best choice for every window would give, the last at no price.
        windows: held out.
        price: of a step, in the fit.
    """

    fixed: tuple[float, ...]
    by_text: dict[str, tuple[float, ...]]
    best: int
    curves: tuple[Curve, ...]
    hindsight: tuple[Ideal, ...]
    windows: int
    price: float

    def verdict(self) -> list[str]:
        """Lines that say what the halters reach of what they were to reach."""
        best = self.fixed[self.best - 1]
        lines = [f"best fixed depth {self.best}: {best:.4f} nats"]
        for curve in self.curves:
            at, least = curve.loss_at_best, curve.depth_at_equal
            same = "has no point there" if at is None else f"{at - best:+.4f} nats"
            saved = "reached by no threshold"
            if least is not None:
                saved = f"{1 - least / self.best:.0%} fewer steps"
            lines.append(
                f"{curve.kind}: at mean depth {self.best} {same}; at equal loss {saved}; as made "
                f"{-curve.gain[0]:+.4f} ± {curve.gain[1]:.4f} nats at mean depth "
                f"{curve.chosen.depth:.2f}"
            )
        bound = least_depth(((one.depth, one.loss) for one in self.hindsight), best)
        if bound is not None:
            lines.append(
                f"hindsight: at equal loss {1 - bound / self.best:.0%} fewer steps, and "
                f"{self.hindsight[-1].loss - best:+.4f} nats at its best: the most that there is"
            )
        return lines


def study(
    model: OuroborosForCausalLM,
    seen: Observations,
    held: dict[str, Observations],
    options: HalterOptions,
) -> Study:
    """Fits the halters on what was seen, and draws their curves on what was held out.

    Args:
        model: for its final norm and LM head.
        seen: of training text.
        held: of held-out texts, by name.
        options: how the halters are made; every kind is.
    """
    whole = join(list(held.values()))
    fixed = whole.losses.mean(0).tolist()
    best = fixed.index(min(fixed)) + 1
    curves = []
    for kind in KINDS:
        halter, choice, _ = choose_halter(model, seen, replace(options, kind=kind))
        curves.append(draw(model, kind, halter, choice, whole, best))
    by_text = {name: tuple(one.losses.mean(0).tolist()) for name, one in held.items()}
    found = hindsight(whole.losses)
    return Study(tuple(fixed), by_text, best, tuple(curves), found, len(whole), options.price)


@torch.no_grad()
def draw(
    model: OuroborosForCausalLM,
    kind: str,
    halter: Halter,
    choice: Choice,
    held: Observations,
    best: int,
) -> Curve:
    """The curve of one halter.

    Args:
        model: for its final norm and LM head.
        kind: the halter's.
        halter: fitted.
        choice: at its threshold.
        held: what it is tried on.
        best: the best fixed depth.
    """
    scores, losses = halting_scores(halter, held, model), held.losses
    points = sorted(sweep(scores, losses), key=lambda one: one.depth)
    chosen = choose_at(scores, losses, choice.threshold)
    depths = chosen_depths(scores, choice.threshold)
    gains = losses[:, best - 1] - losses.gather(1, depths[:, None] - 1)[:, 0]
    spread = float(gains.std()) if len(gains) > 1 else 0.0
    gain = (float(gains.mean()), 1.96 * spread / len(gains) ** 0.5)
    limit = float(losses.mean(0)[best - 1])
    least = least_depth(((one.depth, one.loss) for one in points), limit)
    return Curve(kind, chosen, gain, tuple(points), loss_at(points, best), least)


def loss_at(points: Sequence[Choice], depth: float) -> float | None:
    """The loss at a mean depth, on the line between the points beside it; points in order."""
    below = [one for one in points if one.depth <= depth]
    above = [one for one in points if one.depth >= depth]
    if not below or not above:
        return None
    low, high = below[-1], above[0]
    if high.depth == low.depth:
        return low.loss
    share = (depth - low.depth) / (high.depth - low.depth)
    return low.loss + share * (high.loss - low.loss)


def least_depth(points: Iterable[tuple[float, float]], limit: float) -> float | None:
    """The least of mean depths whose losses, beside them, are at most `limit` or equal to it."""
    return min((depth for depth, loss in points if loss <= limit + TOLERANCE), default=None)


def hindsight(losses: torch.Tensor) -> tuple[Ideal, ...]:
    """The best choice for every window `[N, D]`, at prices of a step from 0.1 nats down to 0."""
    steps = torch.arange(1, losses.shape[1] + 1)
    found = []
    for price in (0.1, 0.05, 0.03, 0.02, 0.015, 0.01, 0.007, 0.005, 0.003, 0.002, 0.001, 0.0):
        depths = (losses + price * steps).argmin(1)
        loss = float(losses.gather(1, depths[:, None]).mean())
        found.append(Ideal(price, float((depths + 1).float().mean()), loss))
    return tuple(found)


def print_study(found: Study) -> None:
    """Prints the tables and what they say."""
    depths = range(1, len(found.fixed) + 1)
    print(f"{'fixed depth':>14}  " + "  ".join(f"{depth:>7}" for depth in depths))
    for name, losses in {**found.by_text, "mean": found.fixed}.items():
        print(f"{name:>14}  " + "  ".join(f"{loss:7.4f}" for loss in losses))
    print(f"\n{'':>14}  {'mean depth':>10}  {'loss':>7}  {'threshold':>9}")
    for curve in found.curves:
        for one in thin(curve.points):
            print(f"{curve.kind:>14}  {one.depth:10.2f}  {one.loss:7.4f}  {one.threshold:9.4f}")
    for ideal in found.hindsight:
        print(f"{'hindsight':>14}  {ideal.depth:10.2f}  {ideal.loss:7.4f}  price {ideal.price:g}")
    print()
    print(*found.verdict(), sep="\n")


def thin(points: Sequence[Choice]) -> list[Choice]:
    """Points at least a third of a step apart."""
    kept: list[Choice] = []
    for one in points:
        if not kept or one.depth - kept[-1].depth >= 1 / 3:
            kept.append(one)
    return kept


def measure(
    checkpoint: Path, texts: Sequence[Path], options: HalterOptions, seq_len: int, windows: int
) -> Study:
    """Observes a checkpoint on both kinds of text.

    Args:
        checkpoint: a trained one.
        texts: held out.
        options: how halters are made.
        seq_len: tokens of a held-out window.
        windows: of each held-out text.

    Raises:
        DataError: a text can't be used.
        CheckpointError: the checkpoint can't be loaded.
    """
    from ouroboros.checkpoint import load_with_tokenizer
    from ouroboros.text.windows import load_eval_windows

    model, tokenizer = load_with_tokenizer(checkpoint)
    depth = choose_depth(options.depth, model.config)
    held = {}
    for name, cut in load_eval_windows(texts, tokenizer, seq_len, windows).items():
        print(f"observing {len(cut)} held-out windows of {name}", flush=True)
        held[name] = observe(model, cut, [seq_len // 2], depth)
    chosen = choose_windows(options, tokenizer, print)
    print(f"observing {len(chosen)} windows to fit halters on", flush=True)
    seen = observe(model, chosen, prompt_ends(options), depth)
    return study(model, seen, held, options)


def main() -> None:
    """Reads the command line, measures, prints and writes."""
    parser = make_parser("bench.halting", __doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="to fit on")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="held out")
    parser.add_argument("--depth", type=int, help="the most steps")
    parser.add_argument("--price", type=float, default=HalterOptions().price)
    parser.add_argument("--fit-windows", type=int, default=HalterOptions().windows)
    parser.add_argument("--seq-len", type=int, default=512, help="of held-out windows")
    parser.add_argument("--windows", type=int, default=16, help="of each held-out text")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with one_line_errors():
        if given.windows < 1:
            raise CommandError(f"--windows {given.windows} scores nothing", "give 1 or more")
        require_writable(given.json, [given.checkpoint, *given.data, *given.text])
        options = HalterOptions(
            data=tuple(given.data),
            depth=given.depth,
            price=given.price,
            windows=given.fit_windows,
        )
        found = measure(given.checkpoint, given.text, options, given.seq_len, given.windows)
        print_study(found)
        if given.json is not None:
            write_json(given.json, {"machine": describe_machine(PACKAGES), **asdict(found)})


if __name__ == "__main__":
    main()
