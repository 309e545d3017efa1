"""Data: folders of images, image files, ImageNet100, and filters."""

from . import imagenet100

__all__ = ['imagenet100']
