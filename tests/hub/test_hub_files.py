"""Comparing files: any change is noticed."""

import hashlib
import random
import subprocess

import pytest

from helpers.networks import WEIGHTS
from mlfm_zoo.hub.files import CheckpointError, compare_file, file_digest, git_blob_id


def test_digests(tmp_path):
    file = tmp_path / 'file'
    file.write_bytes(random.Random(0).randbytes(3_000_000))
    assert file_digest(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    git = subprocess.run(['git', 'hash-object', '--no-filters', str(file)], capture_output=True, text=True, check=True)
    assert git_blob_id(file) == git.stdout.strip()


def test_any_change_is_noticed(tmp_path):
    rng = random.Random(5)
    data = WEIGHTS.read_bytes()
    file = tmp_path / 'a.safetensors'
    file.write_bytes(data)
    sha256, blob = file_digest(file), git_blob_id(file)
    for facts in (dict(size=len(data), sha256=sha256), dict(sha256=sha256), dict(blob=blob)):
        file.write_bytes(data)
        compare_file(file, 'these weights', **facts)
        for _ in range(100):
            start = rng.randrange(len(data))
            changed = rng.choice([
                data[:start], data[:start] + bytes([data[start] ^ 1 << rng.randrange(8)]) + data[start + 1:],
                data[:start] + data[start + 1:], data[:start] + b'\0' + data[start:], b''])
            file.write_bytes(changed)
            with pytest.raises(CheckpointError, match='The file of these weights has .*, expected .*') as error:
                compare_file(file, 'these weights', **facts)
            assert len(str(error.value).splitlines()) == 1
    file.unlink()
    with pytest.raises(CheckpointError, match='cannot be read .*: install or download it again'):
        compare_file(file, 'these weights')
