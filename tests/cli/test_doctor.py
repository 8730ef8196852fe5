from __future__ import annotations

import subprocess
import sys

import pytest

from cli.doctor import doctor
from tests.support.paths import ROOT


@pytest.mark.needs_torch
def test_doctor_prints_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    doctor()
    said = capsys.readouterr().out
    for thing in ("torch", "onnxscript", "onnxruntime", "GPU", "TensorRT for RTX", "cuda-bindings"):
        assert thing in said
    builds, runs = (line for line in said.splitlines() if line.startswith(("builds:", "runs:")))
    assert builds.startswith("builds: onnx")
    assert runs.startswith("runs: cpu")


def test_doctor_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom cli.doctor import doctor\ndoctor()\n"
        "heavy = ('torch', 'transformers', 'onnx', 'tensorrt_rtx_bindings', 'tensorrt')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
