"""A chat template as plain data: what stands around the contents of a conversation.

`runtime.text.compiled_chat` renders it, and says how to the letter; `export.chat` makes it from a
template, or makes none where it would not render exactly the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime.bundle.cures import EXPORT_AGAIN
from runtime.errors import BundleError

ROLES = ("system", "user", "assistant")
ORDERS = ("any", "system_first", "alternating")
STRIPS = ("none", "left", "right", "both")
FOLDS = ("first", "last")
# What is white space here: Unicode's White_Space and U+001C..U+001F, as Python's str.strip has it.
SPACE = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007"
    "\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)


@dataclass(frozen=True)
class RoleSpec:
    """What stands around the content of a role's messages.

    Attributes:
        before: stands before the content.
        strip: the sides on which the content loses its white space, one of STRIPS.
        after: stands after the content, where another message follows.
        last: stands there in place of `after`, where the conversation ends; None where it may not.
        answer: stands there where the conversation ends and the model is to answer: it ends with
            the beginning of the assistant's turn. None where it may not.
        skip_empty: a message whose content is "" is left out.
    """

    before: str
    strip: str
    after: str
    last: str | None
    answer: str | None
    skip_empty: bool


@dataclass(frozen=True)
class FoldSpec:
    """How a system message becomes part of the content of a user's message.

    Attributes:
        into: "first": of the first message after it. "last": of the conversation's last message,
            and it is left out where that one is not the user's.
        before: stands before the system message's content.
        strip: the sides on which that content loses its white space, one of STRIPS.
        after: stands between it and the user's content.
        skip_empty: a system message whose content is "" is left out.
        joined: the user's own `strip` is of the joined text, not of the user's content alone.
    """

    into: str
    before: str
    strip: str
    after: str
    skip_empty: bool
    joined: bool


@dataclass(frozen=True)
class ChatSpec:
    """A compiled chat template.

    Attributes:
        begin: stands before everything.
        default_system: stands after it, where the first message is not a system message.
        order: the conversations that it takes. "any": every one. "system_first": a system message
            only as the first. "alternating": user, assistant, user and so on, after a system
            message or none.
        roles: by name; any other role is refused.
        fold: how a system message is put into a user's; None where `roles` has it, or it is
            refused.
    """

    begin: str
    default_system: str
    order: str
    roles: dict[str, RoleSpec]
    fold: FoldSpec | None

    @property
    def takes(self) -> tuple[str, ...]:
        """The roles of the messages that it renders."""
        return tuple(
            name for name in ROLES if name in self.roles or (name == "system" and self.fold)
        )


def check_chat(spec: ChatSpec) -> None:
    """Refuses values that mean nothing, or contradict each other.

    Raises:
        BundleError: of the first that does.
    """
    _allow("order", spec.order, ORDERS)
    for name, role in spec.roles.items():
        _allow("roles", name, ROLES)
        _allow(f"roles.{name}.strip", role.strip, STRIPS)
    for name in ("user", "assistant"):
        if name not in spec.roles:
            raise BundleError(f"the compiled chat template has no role {name!r}", EXPORT_AGAIN)
    if spec.fold is None:
        return
    _allow("fold.into", spec.fold.into, FOLDS)
    _allow("fold.strip", spec.fold.strip, STRIPS)
    if "system" in spec.roles or spec.order != "alternating":
        raise BundleError(
            "the compiled chat template folds the system message, which needs the order "
            "'alternating' and no role 'system'",
            EXPORT_AGAIN,
        )


def _allow(where: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise BundleError(
            f"the compiled chat template's {where} is {value!r:.60}, allowed: {', '.join(allowed)}",
            EXPORT_AGAIN,
        )
