"""`ouro doctor`: what this machine can build and run, and what would bring the rest."""

from __future__ import annotations


def doctor() -> None:
    """Show what this machine can build and run, and the cure for each thing that is missing.

    Examples:
      ouro doctor
    """
    from rich.console import Console
    from rich.text import Text

    from cli.screen import new_table, print_prose, print_table
    from runtime.backends.findings import GOOD, MISSING, WRONG, examine_machine

    found = examine_machine()
    colors = {GOOD: "green", MISSING: "yellow", WRONG: "bold red"}
    table = new_table("", "state", "found")
    for one in found.findings:
        table.add_row(one.thing, Text(one.state, colors[one.state]), Text(one.found))
    console = Console()
    print_table(table, console)
    for one in found.findings:
        if one.cure:
            print_prose(f"{one.thing}: {one.cure}", console)
    print_prose(f"builds: {', '.join(found.builds) or 'nothing'}", console)
    print_prose(f"runs: {', '.join(found.runs) or 'nothing'}", console)
