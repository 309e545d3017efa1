"""Modules under the names that they had up to version 0.1, so that imports written then go on working.

A name is looked up in the table below when it is imported, and not before: it costs nothing, and no file stands in the
package for it.
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Optional

__all__ = ['MOVED', 'install_moved_names']

MOVED = {
    'mlfm_zoo.attach': 'mlfm_zoo.memory.attach',
    'mlfm_zoo.collect': 'mlfm_zoo.workflow.collect',
    'mlfm_zoo.cost': 'mlfm_zoo.workflow.cost',
    'mlfm_zoo.evaluate': 'mlfm_zoo.workflow.evaluate',
    'mlfm_zoo.hub.card': 'mlfm_zoo.workflow.card',
    'mlfm_zoo.hub.publishing': 'mlfm_zoo.workflow.publish',
    'mlfm_zoo.kernel': 'mlfm_zoo.memory.kernel',
    'mlfm_zoo.launch': 'mlfm_zoo.workflow.launch',
    'mlfm_zoo.recipe': 'mlfm_zoo.workflow.recipe',
}


class MovedFinder(MetaPathFinder, Loader):
    """Finds a module of the table, and puts the one that it is today in its place."""

    def find_spec(self, name: str, path=None, target=None) -> Optional[ModuleSpec]:
        return ModuleSpec(name, self) if name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None  # a module of Python's own making, which the next step replaces

    def exec_module(self, module) -> None:
        sys.modules[module.__name__] = import_module(MOVED[module.__name__])


def install_moved_names() -> None:
    """Let Python find modules by the names of the table, once."""
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(MovedFinder())
