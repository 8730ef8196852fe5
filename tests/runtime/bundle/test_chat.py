from __future__ import annotations

from dataclasses import replace

import pytest

from runtime.bundle.chat import ChatSpec, FoldSpec, RoleSpec, check_chat
from runtime.errors import BundleError

ROLE = RoleSpec("<", "none", ">", ">", None, False)
SPEC = ChatSpec("", "", "alternating", {"user": ROLE, "assistant": ROLE}, None)
FOLD = FoldSpec("first", "", "none", "", False, False)


def test_chat_spec_names_the_roles_that_it_takes() -> None:
    assert SPEC.takes == ("user", "assistant")
    assert replace(SPEC, fold=FOLD).takes == ("system", "user", "assistant")
    check_chat(SPEC)
    check_chat(replace(SPEC, fold=FOLD))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (replace(SPEC, order="some"), "order is 'some', allowed: any, system_first"),
        (replace(SPEC, roles={**SPEC.roles, "tool": ROLE}), "roles is 'tool', allowed: system"),
        (replace(SPEC, roles={"user": ROLE}), "no role 'assistant'"),
        (
            replace(SPEC, roles={**SPEC.roles, "user": replace(ROLE, strip="x")}),
            "user.strip is 'x'",
        ),
        (replace(SPEC, fold=replace(FOLD, into="all")), "fold.into is 'all', allowed: first"),
        (replace(SPEC, fold=replace(FOLD, strip="")), "fold.strip is ''"),
        (replace(SPEC, order="any", fold=FOLD), "folds the system message"),
        (replace(SPEC, roles={**SPEC.roles, "system": ROLE}, fold=FOLD), "folds the system"),
    ],
)
def test_chat_spec_that_means_nothing_is_refused(spec: ChatSpec, words: str) -> None:
    with pytest.raises(BundleError) as caught:
        check_chat(spec)
    assert words in str(caught.value)
