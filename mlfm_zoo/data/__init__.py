"""ImageNet100: its classes, and folders of it."""

from . import imagenet100

__all__ = ['imagenet100']
