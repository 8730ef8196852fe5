"""Registration with transformers: any import order, fresh processes, and what checkpoints carry."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ouroboros import OuroborosForCausalLM, load_checkpoint, save_checkpoint
from ouroboros.model.auto_map import AUTO_MAP, MODULE, SOURCE
from tests.support.paths import ROOT

MODULE_FILE = f"{MODULE}.py"


def run(code: str, *arguments: object, home: Path, path: str = str(ROOT)) -> str:
    """Runs `code` in a fresh process that may neither ask nor download."""
    offline = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **offline},
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.slow
def test_importing_the_package_is_cheap_and_hides_nothing(tmp_path: Path) -> None:
    code = """
import sys, ouroboros, ouroboros.errors
assert not {"torch", "transformers", "numpy"} & set(sys.modules)
from transformers.models.auto import configuration_auto
assert "ouroboros" in configuration_auto.CONFIG_MAPPING
assert type(configuration_auto.__spec__.loader).__name__ == "SourceFileLoader"
assert configuration_auto.__loader__ is configuration_auto.__spec__.loader
import inspect
assert "CONFIG_MAPPING" in inspect.getsource(configuration_auto)
"""
    run(code, home=tmp_path)


@pytest.mark.slow
def test_missing_torch_or_transformers_are_silent(tmp_path: Path) -> None:
    """transformers stays usable where ours can't be registered; our own names say why."""
    code = """
import sys, ouroboros
class Without:
    def find_spec(self, name, path=None, target=None):
        if name == "ouroboros.model.base_config":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Without())
from transformers import AutoConfig, CONFIG_MAPPING
assert "ouroboros" not in CONFIG_MAPPING and "llama" in CONFIG_MAPPING
try:
    from ouroboros import OuroborosConfig
except ImportError as error:
    assert "torch" in str(error)
else:
    raise SystemExit("imported")
"""
    run(code, home=tmp_path)


ORDERS = (
    "from transformers import AutoModelForCausalLM; import ouroboros",
    "import ouroboros, transformers.models.llama.modeling_llama",  # our import falls inside it
)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_any_order_of_imports_registers_the_model(
    tiny_checkpoint: Path, tmp_path: Path, order: str
) -> None:
    code = f"""
import sys
{order}
from transformers import AutoConfig, AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])  # asks nothing, trusts nothing
assert type(model).__module__ == "ouroboros.model.modeling", type(model)
assert AutoConfig.for_model("ouroboros").model_type == "ouroboros"
assert not [name for name in sys.modules if name.startswith("transformers_modules")]
"""
    run(code, tiny_checkpoint, home=tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*never trained:UserWarning")
def test_trust_remote_code_finds_the_installed_package(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """A process that never heard of us: Auto classes, a pipeline, and what it saves again."""
    code = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
source, again = sys.argv[1:]
assert "ouroboros" not in sys.modules
model = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=True)
ids = AutoTokenizer.from_pretrained(source)("Hello", return_tensors="pt").input_ids
options = {"max_new_tokens": 6, "do_sample": False}
print(model.generate(ids, **options)[0].tolist())
pipe = pipeline("text-generation", model=source, trust_remote_code=True)
print(pipe.tokenizer(pipe("Hello", **options)[0]["generated_text"]).input_ids)
model.save_pretrained(again)
"""
    out = run(code, tiny_checkpoint, tmp_path / "again", home=tmp_path)
    generated, piped = (json.loads(line) for line in out.splitlines()[-2:])
    model, tokenizer = load_checkpoint(tiny_checkpoint)
    ids = tokenizer("Hello", return_tensors="pt").input_ids
    expected = model.generate(ids, max_new_tokens=6, do_sample=False)[0].tolist()
    assert generated == expected
    assert piped == tokenizer(tokenizer.decode(expected, skip_special_tokens=True)).input_ids
    saved = tmp_path / "again"
    assert sorted(p.name for p in saved.glob("*.py")) == [MODULE_FILE]
    assert json.loads((saved / "config.json").read_text())["auto_map"] == AUTO_MAP
    load_checkpoint(saved)


def test_the_module_names_the_package_to_install(tmp_path: Path) -> None:
    """Never `pip install ouroboros`, which is what transformers would advise: a stranger's."""
    (tmp_path / MODULE_FILE).write_text(SOURCE)
    code = """
import importlib.abc, sys
class Without(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "ouroboros":
            raise ModuleNotFoundError("No module named 'ouroboros'", name=name)
sys.meta_path.insert(0, Without())
from transformers.dynamic_module_utils import check_imports, get_class_from_dynamic_module
assert check_imports(sys.argv[1] + "/modeling_ouroboros.py") == []
try:
    get_class_from_dynamic_module("modeling_ouroboros.OuroborosConfig", sys.argv[1])
except ImportError as error:
    print(error)
"""
    out = run(code, tmp_path, home=tmp_path, path="")
    assert "pip install 'ouroboros-llm[train]'" in out
    assert len(out.splitlines()) == 1


def test_checkpoints_carry_the_map_and_older_ones_load(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    fields = json.loads((tiny_checkpoint / "config.json").read_text())
    assert fields["auto_map"] == AUTO_MAP
    assert (tiny_checkpoint / MODULE_FILE).read_text() == SOURCE
    old = tmp_path / "old"
    shutil.copytree(tiny_checkpoint, old)
    del fields["auto_map"]
    (old / "config.json").write_text(json.dumps(fields))
    (old / MODULE_FILE).unlink()
    model, tokenizer = load_checkpoint(old)
    assert isinstance(AutoModelForCausalLM.from_pretrained(old), OuroborosForCausalLM)
    save_checkpoint(model, tokenizer, tmp_path / "new")
    assert (tmp_path / "new" / MODULE_FILE).read_text() == SOURCE


def test_a_strangers_module_is_never_run_and_never_kept(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, path)
    fields = json.loads((path / "config.json").read_text())
    fields["auto_map"] = dict.fromkeys((*AUTO_MAP, "AutoTokenizer"), "evil.Model")
    (path / "config.json").write_text(json.dumps(fields))
    for name in ("evil.py", MODULE_FILE):
        (path / name).write_text("raise SystemExit('run')")
    model, _ = load_checkpoint(path)
    AutoModelForCausalLM.from_pretrained(path)
    # The installed package is preferred even where the user trusts the folder.
    AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert (tmp_path / "again" / MODULE_FILE).read_text() == SOURCE


def test_auto_class_registration_never_copies_our_sources(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = load_checkpoint(tiny_checkpoint)[0]
    type(model).register_for_auto_class("AutoModelForCausalLM")
    type(model.config).register_for_auto_class()
    model.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.glob("*.py")] == [MODULE_FILE]


def test_config_survives_pickle_and_from_config(tiny_checkpoint: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_checkpoint)
    twin = pickle.loads(pickle.dumps(config))
    assert twin.to_dict() == config.to_dict()
    with torch.device("meta"):
        assert isinstance(AutoModelForCausalLM.from_config(twin), OuroborosForCausalLM)
