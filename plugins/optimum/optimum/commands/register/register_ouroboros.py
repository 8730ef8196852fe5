"""`optimum-cli export ouroboros`: `ouro export` under the name optimum's users look for.

optimum reads REGISTER_COMMANDS of every file in the namespace package optimum.commands.register.
That is why this is a distribution of its own: a folder named `optimum` in the main one would make
`transformers.utils.is_optimum_available()` answer yes where optimum is not installed.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class OuroborosExportCommand(BaseOptimumCLICommand):
    """Exports a checkpoint of `ouro convert` or `ouro train` to a bundle."""

    COMMAND = CommandInfo(
        name="ouroboros",
        help="Export a recursive model made by `ouro convert` to one ONNX graph and its bundle.",
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declares the options, named as optimum's own where it has them."""
        parser.add_argument(
            "-m",
            "--model",
            type=Path,
            required=True,
            help="checkpoint directory made by `ouro convert` or `ouro train`",
        )
        parser.add_argument("output", type=Path, help="bundle directory to write")
        parser.add_argument(
            "--max-depth",
            type=int,
            help="largest depth of the bundle (default: 16, or all the checkpoint has)",
        )
        parser.add_argument(
            "--dtype", default="fp32", help="precision of the weights (default: fp32)"
        )

    def run(self) -> None:
        """Exports; an error is one line and exit status 1, as in `ouro export`."""
        from export import export_bundle
        from runtime.errors import OuroError

        try:
            report = export_bundle(
                self.args.model,
                self.args.output,
                max_depth=self.args.max_depth,
                precision=self.args.dtype,
                report=print,
            )
        except OuroError as error:
            sys.exit(f"error: {error}")
        print(f"wrote {self.args.output}: {report.bytes / 1e6:,.0f} MB in {report.seconds:.1f} s")
        print(f"next: ouro check {self.args.output}")


REGISTER_COMMANDS = [(OuroborosExportCommand, ExportCommand)]
