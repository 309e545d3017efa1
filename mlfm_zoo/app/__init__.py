"""Interactive page: a photograph, two answers, the memory, and a frequency slider.

`mlfm-zoo app` opens it. Nothing else imports this package.
"""

from .page import launch

__all__ = ['launch']
