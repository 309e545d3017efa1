"""Comparing files: any change is noticed."""

import hashlib
import random
import subprocess

import pytest

from helpers.networks import WEIGHTS
from mlfm_zoo.hub.files import CheckpointError, compare_file, file_digest, git_blob_id


def test_any_change_is_noticed(tmp_path):
    rng, data, file = random.Random(5), WEIGHTS.read_bytes(), tmp_path / 'a.safetensors'
    file.write_bytes(data)
    sha256, blob = file_digest(file), git_blob_id(file)
    assert sha256 == hashlib.sha256(data).hexdigest()
    git = subprocess.run(['git', 'hash-object', '--no-filters', str(file)], capture_output=True, text=True, check=True)
    assert blob == git.stdout.strip()
    for facts in (dict(size=len(data), sha256=sha256), dict(sha256=sha256), dict(blob=blob)):
        file.write_bytes(data)
        compare_file(file, 'these weights', **facts)
        start = rng.randrange(len(data))
        for changed in (
            data[:start], data[:start] + bytes([data[start] ^ 1]) + data[start + 1:], data[:start] + data[start + 1:],
            data[:start] + b'\0' + data[start:], b'',
        ):
            file.write_bytes(changed)
            with pytest.raises(CheckpointError, match='The file of these weights has .*, expected'):
                compare_file(file, 'these weights', **facts)
    file.unlink()
    with pytest.raises(CheckpointError, match='cannot be read'):
        compare_file(file, 'these weights')
