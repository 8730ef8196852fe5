"""`.ci/run` says how long each of its parts took."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.support.paths import ROOT


def test_ci_run_prints_a_parts_own_seconds_and_all(tmp_path: Path) -> None:
    make = tmp_path / "make"  # in place of the real one
    make.write_text("#!/bin/sh\nsleep 2\n")
    make.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [str(ROOT / ".ci" / "run"), "check", "test"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = re.findall(r"== make (\w+) done in (\d+) s, (\d+) s in all", done.stdout)
    assert [name for name, _, _ in said] == ["check", "test"]
    own, whole = ([int(row[place]) for row in said] for place in (1, 2))
    assert min(own) >= 1
    assert own[1] < whole[1]
    assert abs(whole[1] - sum(own)) <= 2  # whole seconds
