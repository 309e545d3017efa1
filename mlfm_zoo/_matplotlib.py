"""matplotlib, which extras bring, imported where a picture is asked for."""

from typing import Any

__all__ = ['require_matplotlib']


def require_matplotlib() -> Any:
    """Import matplotlib's pyplot, drawing to files.

    Returns:
        The module.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise RuntimeError(
            "Pictures need matplotlib, which is not installed: pip install 'mlfm-zoo[frequency]', or ask for tables "
            'alone.') from None
    matplotlib.use('Agg')
    import matplotlib.pyplot
    return matplotlib.pyplot
