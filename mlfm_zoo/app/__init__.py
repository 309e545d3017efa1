"""A page to play with: a photograph, two answers, what the memory holds, and a slider over spatial frequencies.

`mlfm-zoo app` opens it. Nothing else imports this package.
"""

from .page import launch

__all__ = ['launch']
