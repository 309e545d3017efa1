"""Make imports of timm import mlfm_zoo too, in processes below `mlfm-zoo run`."""

import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path

HOOK = Path(__file__).resolve().parent
PACKAGE_PARENT = str(HOOK.parents[2])


class ZooFinder:
    """Finder of timm and of this project's packages, installed or not."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in ('mlfm_zoo', 'mlfm_zoo_cli'):
            return PathFinder.find_spec(name, [PACKAGE_PARENT])
        if name != 'timm':
            return None
        finders = (finder for finder in sys.meta_path if finder is not ZooFinder)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in finders)), None)
        if spec is not None and spec.loader is not None:
            exec_module = spec.loader.exec_module

            def exec_timm_and_zoo(module):
                exec_module(module)
                importlib.import_module('mlfm_zoo')

            vars(spec.loader)['exec_module'] = exec_timm_and_zoo  # of this loader alone
        return spec


sys.meta_path.insert(0, ZooFinder)

# The script sees its usual sys.path, and the machine's own sitecustomize runs too.
sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != HOOK]
own = PathFinder.find_spec('sitecustomize', sys.path)
if own is not None and own.loader is not None:
    module = importlib.util.module_from_spec(own)
    sys.modules['sitecustomize'] = module
    own.loader.exec_module(module)
