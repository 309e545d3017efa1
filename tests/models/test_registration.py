"""What importing the package does, and what it leaves alone. Each check runs in an interpreter of its own."""

import csv
import subprocess
import sys

import timm

from helpers.networks import ALL, DCT, GSSDNET
from helpers.reference import REFERENCE, needs_reference
from mlfm_zoo.hub.manifest import load_manifest


def run(code):
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_exactly_34_networks():
    assert len(ALL) == 34
    assert sorted(timm.list_models('mlfm_*')) == sorted([*ALL, 'mlfm_filtered'])
    assert timm.list_models('*mlfm*') == timm.list_models('mlfm_*') + ['test_mlfm_resnet']
    assert sorted(timm.list_models('gssdnet*')) == GSSDNET
    assert sorted(timm.list_models('dct_*')) == DCT


@needs_reference
def test_networks_are_those_of_the_paper():
    with open(REFERENCE / 'paper_table.csv') as f:
        assert sorted(row['model'] for row in csv.DictReader(f)) == ALL


def test_import_adds_and_overwrites_nothing_else():
    added = run('''
import sys, warnings; warnings.simplefilter('error')
import timm
before = {name: timm.model_entrypoint(name) for name in timm.list_models()}
modules = set(timm.list_modules())
import mlfm_zoo
assert all(timm.model_entrypoint(name) is fn for name, fn in before.items())
assert all(m.startswith(('dct_', 'mlfm_', 'gssdnet')) for m in set(timm.list_modules()) - modules)
assert not modules & {name for name in sys.modules['mlfm_zoo.models'].__dict__ if not name.startswith('_')}
print(*sorted(set(timm.list_models()) - set(before)))
''')
    assert added == sorted([*DCT, *GSSDNET, *ALL, 'mlfm_filtered', 'test_mlfm_resnet'])


def test_import_touches_no_network_and_builds_no_model():
    run('''
import gc, sys
import timm, torch
used = {'socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname', 'socket.sendto'}
sys.addaudithook(lambda event, args: sys.exit(f'{event} {args}') if event in used else None)
modules = {id(o) for o in gc.get_objects() if isinstance(o, torch.nn.Module)}
import mlfm_zoo
new = [o for o in gc.get_objects() if isinstance(o, torch.nn.Module) and id(o) not in modules]
assert not new, new
''')


def test_pretrained_today():
    assert set(timm.list_pretrained(['*mlfm*', 'dct_*'])) == {c.name for c in load_manifest().values() if c.available}
    # as docs/weights.md lists trained networks
    assert set(timm.list_pretrained('*mlfm_*', exclude_filters='*_in[12]*k*')) == {
        c.name for c in load_manifest().values() if c.available and c.kind in ('paper', 'embedded', 'trained') and (
            'mlfm_' in c.name)}
    for name in ALL:  # no warm start stands in for weights that do not exist
        authors = 'mobilenetv2' in name
        assert timm.is_model_pretrained(name) == authors
        assert timm.get_pretrained_cfg(name).tag == ('paper_in100' if authors else None) or ''
    for name in GSSDNET + DCT:
        assert not timm.is_model_pretrained(name)
    assert timm.is_model_pretrained('test_mlfm_resnet')
    assert len([c for c in load_manifest().values() if c.kind == 'paper']) == 10
