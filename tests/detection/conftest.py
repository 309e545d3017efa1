"""Real coins in the form of COCO."""

import pytest

from real_instances import coins, write


@pytest.fixture(scope='session')
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('coins')
    write(folder, ['coin'], coins())
    return folder
