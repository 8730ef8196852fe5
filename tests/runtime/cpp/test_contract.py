"""What C++ knows of bundles is what Python says of them."""

from __future__ import annotations

import dataclasses

from runtime.bundle import contract, specs
from runtime.cpp.tools.make_contract import DEFAULTS, TARGET, render, render_defaults


def test_contract_is_up_to_date() -> None:
    for path, text in ((TARGET, render()), (DEFAULTS, render_defaults())):
        assert path.read_text(encoding="utf-8") == text, "run runtime/cpp/tools/make_contract.py"


def test_contract_spells_every_name() -> None:
    text = render()
    names = [
        name for name, value in vars(contract).items() if name.isupper() and type(value) is str
    ]
    assert len(names) > 15
    for name in names:
        constant = "k" + name.title().replace("_", "")
        assert f'{constant}[] = "{getattr(contract, name)}";' in text
    for field in dataclasses.fields(specs.ModelSpec):
        assert f'add("{field.name}", it.{field.name});' in text
