"""What every Python process that starts in the examples' folder does first: see to it that torchvision's named weights
are served by `docs_sandbox_weights` once torchvision is imported, and not before: most commands never need it.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class _Served:
    """Stands before the finders of modules, for one of them."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_serve(module: ModuleType) -> None:
            load(module)
            from tests.docs_sandbox_weights import random_url

            module.models.WeightsEnum.url = property(random_url)

        spec.loader.exec_module = load_and_serve  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Served())
