"""Real coins in the form of COCO."""

import json

import pytest

from real_instances import coins, write


@pytest.fixture(scope='session')
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('coins')
    write(folder, ['coin'], coins())
    return folder


@pytest.fixture
def changed(photos, tmp_path):
    """Writes their annotations after a change, as a file of its own."""
    def write_changed(change):
        content = json.loads((photos / 'annotations.json').read_text())
        change(content)
        (tmp_path / 'changed.json').write_text(json.dumps(content))
        return tmp_path / 'changed.json'
    return write_changed
