"""Where chat templates run: Jinja's sandbox as Hugging Face sets it up, and bounds on the work.

A template comes with a model, so it is a stranger's program. Jinja's sandbox keeps it from reading
and writing things; the bounds here keep it from using up memory or time.

Source: transformers 5.23, utils/chat_template_utils.py (names, extensions and their meaning).
"""

from __future__ import annotations

import datetime
import functools
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jinja2 import (
    Environment,
    TemplateError,
    nodes,
    pass_context,
    pass_environment,
    pass_eval_context,
)
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_format, do_join, do_replace, do_sum
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MOST_CHARACTERS = 2**24  # of a rendered chat, and of any text or list made on the way
MOST_TURNS = 2_000_000  # of all loops and macros of one rendering
TURNS = "turns left"  # no name that a template could write
PADDING = ("center", "ljust", "rjust", "zfill", "expandtabs")
TEXTS = (str, bytes)
ITEM = 16  # characters that an item of a list counts for beside its own: it takes more memory
# Filters by the parameters that say how much they make of each line, word or item.
GROWING = {
    "batch": ("linecount",),
    "center": ("width",),
    "indent": ("width",),
    "round": ("precision",),
    "slice": ("slices",),
    "urlize": ("target", "rel"),
    "wordwrap": ("wrapstring",),
}


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
        self.finalize = _bound  # before it is written as text
        self.filters["format"] = _format
        self.filters["replace"] = _replace
        for name, parameters in GROWING.items():
            self.filters[name] = _growing(self.filters[name], parameters)
        self.filters = {name: _weighed(made) for name, made in self.filters.items()}
        # These weigh what they are given themselves, once they have it as a list or know how often.
        self.filters["join"] = _join
        self.filters["sum"] = _sum
        self.filters["tojson"] = to_json
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
            parts: list[nodes.Expr] = [
                nodes.Filter(one, "bounded text", [], [], None, None) for one in joined.nodes
            ]
            inner = nodes.Concat(parts)
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
            if len(numbers) == 2:
                size = sum(sizes)
            elif numbers:
                size = max(0, numbers[0]) * _size(right if numbers[0] is left else left)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            size = left.bit_length() * right if abs(left) > 1 else 0
        elif operator == "+":
            size = _size(left) + _size(right)
        elif operator == "%" and isinstance(left, TEXTS):
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
        if isinstance(owner, int) and name == "to_bytes":
            _check_size(_greatest((*args, *options.values())))
        if isinstance(owner, TEXTS):
            if name in PADDING:
                times = 1 + len(owner) if name == "expandtabs" else 1
                _check_size(times * _greatest((*args, *options.values())))
            if name == "replace" and len(args) >= 2:
                _check_size((owner.count(args[0]) + 1) * _weigh(args[1]))
            if name == "translate":
                _check_size(len(owner) * max(1, _weigh(args)))
            if name == "join" and args:
                args = (list(args[0]), *args[1:])
                _check_size(sum(len(owner) + _size(item) for item in args[0]))
            if name in ("format", "format_map"):
                _check_format(owner, (*args, *options.values()))
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
    indent: int | str | None = None,
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
    unit = indent if isinstance(indent, int) else len(indent or "")
    between = sum(map(len, separators or ()))
    _check_size(unit * 1024)
    _check_size((1 + unit + between) * _weigh(value))
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


def _weighed(made: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is refused values whose text would be out of proportion."""
    first = 1 if hasattr(made, "jinja_pass_arg") else 0  # before it Jinja's own, as a context

    @functools.wraps(made)
    def checked(*args: Any, **options: Any) -> Any:
        _check_size(_weigh([*args[first:], *options.values()]))
        return made(*args, **options)

    return checked


def _growing(made: Callable[..., Any], parameters: Sequence[str]) -> Callable[..., Any]:
    """A filter that gives for each line, word or item as much as these parameters say."""
    names = list(inspect.signature(made).parameters)
    # What Jinja gives before the value: some filters take it, others have it taken off.
    names = names[1:] if hasattr(inspect.unwrap(made), "jinja_pass_arg") else names
    first = 1 if hasattr(made, "jinja_pass_arg") else 0

    @functools.wraps(made)
    def checked(*args: Any, **options: Any) -> Any:
        given = {**dict(zip(names, args[first:], strict=False)), **options}
        value = args[first]
        most = _greatest(given.get(name) for name in parameters)
        items = len(value.split()) + value.count("\n") if isinstance(value, str) else 0
        _check_size((items + 1) * most)
        return made(*args, **options)

    return checked


@pass_eval_context
def _join(
    context: nodes.EvalContext, value: Iterable[Any], d: Any = "", attribute: Any = None
) -> str:
    items = list(value)
    _check_size(_weigh(items) + len(items) * _weigh(d))
    return str(do_join(context, items, str(d), attribute))


@pass_environment
def _sum(
    environment: Environment, value: Iterable[Any], attribute: Any = None, start: Any = 0
) -> Any:
    items = list(value)
    _check_size(_weigh([*items, start]))
    return do_sum(environment, items, attribute, start)


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


def _bound(value: Any) -> Any:
    _check_size(_weigh(value))
    return value


def _check_format(pattern: str | bytes, values: Any) -> None:
    text = pattern.decode("latin-1") if isinstance(pattern, bytes) else pattern
    width = "".join(letter if letter.isdigit() else " " for letter in text).split()
    _check_size(max([0, *(int(number[:20]) for number in width)]))
    given = values if isinstance(values, tuple) else (values,)
    if "*" in text or "{" in text:
        _check_size(max([0, *(value for value in given if isinstance(value, int))]))
    _check_size((text.count("%") + text.count("{")) * _weigh(given))


def _greatest(values: Iterable[Any]) -> int:
    """The most characters that a parameter asks for: a number of them, or a text."""
    found = [len(one) if isinstance(one, TEXTS) else one for one in values]
    return max([0, *(abs(one) for one in found if isinstance(one, int))])


def _weigh(value: Any) -> int:
    """The characters of a value's text, about; counted no further than the bound."""
    size, left = 0, [value]
    while left and size <= MOST_CHARACTERS:
        one = left.pop()
        size += _size(one)
        if isinstance(one, Mapping):
            size += len(one)
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            left += one
    return size


def _size(value: Any) -> int:
    if isinstance(value, int):
        return value.bit_length()
    if isinstance(value, list | tuple):
        return ITEM * len(value)
    return len(value) if isinstance(value, TEXTS) else 0


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
