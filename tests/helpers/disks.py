"""A read-only folder and a full disk."""

import contextlib
import os

import pytest


@contextlib.contextmanager
def reader_of(cache):
    """This process is a user who may read a folder, but not write to it; root may."""
    folders = [cache, *(p for p in cache.rglob('*') if p.is_dir())]
    user = os.geteuid()
    for folder in folders:
        folder.chmod(0o555)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        for folder in folders:
            folder.chmod(0o755)


@contextlib.contextmanager
def full_disk(limit):
    """A limit on the size of files stands for a full disk; it fails in the same call, with another number."""
    resource = pytest.importorskip('resource')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
