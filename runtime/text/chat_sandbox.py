"""Where chat templates run: Jinja's sandbox as Hugging Face sets it up, and bounds on the work.

A template comes with a model, so it is a stranger's program. Jinja's sandbox keeps it from reading
and writing things; the bounds here keep it from using up memory or time.

Source: transformers 5.23, utils/chat_template_utils.py (names, extensions and their meaning).
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import TemplateError, nodes, pass_context, pass_eval_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_format, do_replace
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MOST_CHARACTERS = 2**24  # of a rendered chat, and of any text or list made on the way
MOST_TURNS = 2_000_000  # of all loops and macros of one rendering
TURNS = "turns left"  # no name that a template could write
PADDING = ("center", "ljust", "rjust", "zfill", "expandtabs")


class TooMuchError(TemplateError):
    """A template does more than it may."""


class Generation(Extension):
    """`{% generation %}`, which marks an answer for training: it renders what is in it."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Reads the block; names set in it stay in it, as in Hugging Face's.

        Args:
            parser: stands at the tag.
        """
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_render")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _render(self, caller: Callable[[], str]) -> str:
        return caller()


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The environment of one template."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        self.filters["tojson"] = to_json
        for name in ("center", "indent"):
            self.filters[name] = _bounded(self.filters[name])
        self.filters["format"] = _format
        self.filters["replace"] = _replace
        self.filters[TURNS] = _count_turn
        self.filters["bounded text"] = _bound
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = _now
        self.globals["dict"] = _Dict()
        self.globals["namespace"] = _Namespace

    def compile_bounded(self, source: str) -> Any:
        """A template whose loops and macros count their turns.

        Args:
            source: the template.

        Raises:
            Exception: of any kind that Jinja, or Python compiling what it writes, knows.
        """
        tree = self.parse(source)
        for loop in [*tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))]:
            count = nodes.Filter(nodes.Const(0), TURNS, [], [], None, None)
            body: list[nodes.Node] = loop.body  # type: ignore[attr-defined]  # all three have one
            body.insert(0, nodes.ExprStmt(count))
            if isinstance(loop, nodes.For) and loop.test is not None:
                yes = nodes.Filter(nodes.Const(True), TURNS, [], [], None, None)
                loop.test = nodes.And(yes, loop.test)
        for joined in [*tree.find_all(nodes.Concat)]:
            inner = nodes.Concat(joined.nodes)
            joined.nodes = [nodes.Filter(inner, "bounded text", [], [], None, None)]
        tree.set_environment(self)
        return self.from_string(tree)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operation, refused where its result would be out of proportion.

        Args:
            context: of the template.
            operator: one of `intercepted_binops`.
            left: its left side.
            right: its right side.
        """
        size = 0
        if operator == "*":
            sizes = [_size(left), _size(right)]
            numbers = [value for value in (left, right) if isinstance(value, int)]
            size = sum(sizes) if len(numbers) == 2 else max(sizes) * max([0, *numbers])
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            size = left.bit_length() * right if abs(left) > 1 else 0
        elif operator == "+":
            size = _size(left) + _size(right)
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right)
        _check_size(size)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, target: Any, *args: Any, **options: Any) -> Any:
        """Calls a function or method of a template.

        Args:
            context: of the template.
            target: what is called.
            args: as the template gives them.
            options: as the template gives them.
        """
        inner = getattr(target, "__wrapped__", target)  # the sandbox wraps str.format
        owner, name = getattr(inner, "__self__", None), getattr(inner, "__name__", "")
        if name == "generate_lorem_ipsum":  # Jinja's `lipsum`
            _check_size(1000 * max([0, *(v for v in (*args, *options.values()) if _is_int(v))]))
        if isinstance(owner, str):
            if name in PADDING:
                _check_size(max([0, *(value for value in args if isinstance(value, int))]))
            if name == "replace" and len(args) >= 2:
                _check_size((owner.count(args[0]) + 1) * len(args[1]))
            if name == "join" and args:
                args = (list(args[0]), *args[1:])
                _check_size(sum(len(owner) + _size(item) for item in args[0]))
            if name == "format":
                _check_format(owner, args)
        return super().call(context, target, *args, **options)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Joins what a template writes.

        Args:
            parts: in order.
        """
        kept, size = [], 0
        for part in parts:
            size += len(part)
            _check_size(size)
            kept.append(part)
        return "".join(kept)


class _Dict:
    """`dict` of a template: makes dictionaries, and shows nothing of the class."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Namespace(Namespace):
    """`namespace` of a template, in which no name may begin with an underscore."""

    def __init__(*args: Any, **values: Any) -> None:  # `self` may be a name of the template's
        names = dict(*args[1:], **values)
        for name in names:
            _check_name(name)
        Namespace.__init__(args[0], names)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the escapes for HTML that Jinja's own filter adds.

    Args:
        value: what to write.
        ensure_ascii: as for `json.dumps`, like the rest.
        indent: spaces a level.
        separators: between items, and after keys.
        sort_keys: in the order of the alphabet.
    """
    if isinstance(indent, int):
        _check_size(indent * 1024)
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@pass_context
def _count_turn(context: Context, value: int) -> int:
    left = context.parent[TURNS]
    left[0] -= 1
    if left[0] < 0:
        raise TooMuchError(f"its loops and macros take more than {MOST_TURNS} turns")
    return value


def _bounded(made: Callable[..., Any]) -> Callable[..., Any]:
    def checked(value: Any, *args: Any, **options: Any) -> Any:
        numbers = [one for one in (*args, *options.values()) if isinstance(one, int)]
        lines = str(value).count("\n") + 1
        _check_size(max([0, *numbers]) * lines)
        return made(value, *args, **options)

    return checked


def _is_int(value: object) -> bool:
    return isinstance(value, int)


def _format(pattern: Any, *values: Any, **named: Any) -> str:
    _check_format(str(pattern), (*values, *named.values()))
    return str(do_format(pattern, *values, **named))


@pass_eval_context
def _replace(
    context: nodes.EvalContext, text: Any, old: str, new: str, count: int | None = None
) -> str:
    _check_size((str(text).count(str(old)) + 1) * len(str(new)))
    return str(do_replace(context, text, old, new, count))


def _bound(text: Any) -> Any:
    _check_size(_size(text))
    return text


def _check_format(pattern: str, values: Any) -> None:
    width = "".join(letter if letter.isdigit() else " " for letter in pattern).split()
    _check_size(max([0, *(int(number[:20]) for number in width)]))
    if "*" in pattern or "{" in pattern:
        given = values if isinstance(values, tuple) else (values,)
        _check_size(max([0, *(value for value in given if isinstance(value, int))]))


def _size(value: Any) -> int:
    if isinstance(value, int):
        return value.bit_length()
    return len(value) if isinstance(value, str | list | tuple) else 0


def _check_size(size: int) -> None:
    if size > MOST_CHARACTERS:
        raise TooMuchError(f"it makes more than {MOST_CHARACTERS} characters")


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(
            f"a namespace may hold no name that begins with _, as {name!r:.60} does"
        )


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _now(format: str) -> str:
    return datetime.datetime.now().strftime(format)
