"""The error of the export stage, and the refusal of options that would have no effect."""

from __future__ import annotations

from collections.abc import Mapping

from runtime.errors import ExportError as ExportError


def refuse_unused(options: Mapping[str, object], use: str, chosen: str) -> None:
    """Refuses options that were given and would change nothing.

    Args:
        options: values by their names; None where one was left out.
        use: what the options are for.
        chosen: what was chosen, which has no use for them.

    Raises:
        ExportError: one was given.
    """
    given = [name for name, value in options.items() if value is not None]
    if given:
        verb, pronoun = ("is", "it") if len(given) == 1 else ("are", "them")
        raise ExportError(
            f"{' and '.join(given)} {verb} for {use}, not for {chosen}", f"leave {pronoun} out"
        )
