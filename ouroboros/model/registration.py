"""Makes `import ouroboros` enough for transformers' Auto classes, without importing transformers.

Registering a class needs the class, and the class needs transformers and torch. So the import of
our modules, which register themselves, is put off until transformers' own mapping is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

FOLLOWERS = {
    "transformers.models.auto.configuration_auto": "ouroboros.model.configuration",
    "transformers.models.auto.modeling_auto": "ouroboros.model.modeling",
}
"""Which module of ours registers itself in which of transformers' mappings."""


def _import_follower(name: str) -> None:
    # Where torch is missing or transformers too old there is nothing to register, and whoever
    # imported transformers must not fail for it: `from ouroboros import ...` names the reason.
    try:
        import_module(FOLLOWERS[name])
    except ImportError:
        return


class _FollowedLoader(Loader):
    """Runs a module's own loader, then imports the module of ours that follows it."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module keeps no trace of us: sources and resources are found as without.
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        _import_follower(module.__name__)


class AutoClassFinder(MetaPathFinder):
    """Finds transformers' two mapping modules as the other finders do, and has them followed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns the spec of one of `FOLLOWERS` with a loader that imports ours after it."""
        if fullname not in FOLLOWERS:
            return None
        for finder in sys.meta_path:
            if isinstance(finder, AutoClassFinder):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _FollowedLoader(spec.loader)
                return spec
        return None


def register_with_transformers() -> None:
    """Registers config and model at once where transformers is imported, else when it will be."""
    if not any(isinstance(finder, AutoClassFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, AutoClassFinder())
    for name in FOLLOWERS:
        if name in sys.modules:
            _import_follower(name)
