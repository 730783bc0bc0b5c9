"""Tells transformers of neuzip's quantization method as soon as both are imported, in either order.

``from_pretrained`` then loads a directory that ``neuzip compress`` made as it is. Nothing of transformers is imported
for that, or changed: a finder waits for its ``modeling_utils``, whose import brings neuzip's integration along.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, cast

_AWAITED = "transformers.modeling_utils"
_INTEGRATION = "neuzip.integrations.transformers"


class _Wait:
    """Finds the awaited module as Python would, once, with a loader that has the integration follow."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _AWAITED:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = cast(Any, _Followed(spec.loader))
        return spec


class _Followed:
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _integrate()


def _integrate() -> None:
    # A transformers that is too old for the method works on without it; touching NeuzipConfig says what is missing.
    with suppress(ImportError):
        import_module(_INTEGRATION)


def register() -> None:
    """Registers the method, now if transformers' models are imported already, else when they are."""
    if _AWAITED in sys.modules:
        _integrate()
    elif not any(isinstance(finder, _Wait) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Wait())
