"""Optional libraries, imported where they are used."""

import importlib
from typing import Any

__all__ = ['require_extra', 'require_matplotlib']


def require_extra(module: str, extra: str, what: str) -> Any:
    """Import a library.

    Args:
        module: Name of the library, or of a module of it.
        extra: The extra of this package that installs it.
        what: What needs it: the start of the error.

    Returns:
        The module.

    Raises:
        RuntimeError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        library = module.partition('.')[0]
        raise RuntimeError(
            f"{what} needs {library}, which is not installed: pip install 'mlfm-zoo[{extra}]'.") from None


def require_matplotlib() -> Any:
    """Import matplotlib's pyplot, drawing to files.

    Returns:
        The module.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    require_extra('matplotlib', 'frequency', 'A picture').use('Agg')
    import matplotlib.pyplot
    return matplotlib.pyplot
