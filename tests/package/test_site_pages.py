"""The pages that the site makes say what the manifest says, and the notebook runs from top to bottom."""

import re
from pathlib import Path

import nbformat
import pytest
import yaml

import site_pages
from helpers.networks import ALL, DCT, GSSDNET
from mlfm_zoo.hub.manifest import own_checkpoints
from run_notebook import markdown_of, run

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / 'docs' / 'notebooks').glob('*.ipynb'))
ENTRIES = yaml.safe_load((ROOT / 'weights_manifest.yaml').read_text(encoding='utf-8'))['checkpoints']


def test_every_network_and_checkpoint_has_a_page_of_its_own():
    assert sorted(site_pages.network_names()) == sorted([*ALL, *GSSDNET, *DCT, 'test_mlfm_resnet'])
    paths = [site_pages.network_path(name) for name in site_pages.network_names()]
    paths += [site_pages.checkpoint_path(c) for c in own_checkpoints().values()]
    assert len(set(paths)) == 60 + len(ENTRIES)


@pytest.mark.parametrize('name, said', [
    ('mlfm_resnet10', '**Not trained.**'),
    ('mlfm_resnet50', '**Not trained.**'),  # except warm starts
    ('gssdnet_o2_100', '**Not trained.**'),
    ('dct_resnet50_24s', '**Not trained.**'),
    ('mlfm_mobilenetv2_050', "The authors' own ImageNet100 weights"),
    ('test_mlfm_resnet', 'They know handwritten digits only.'),
])
def test_network_page_says_first_what_is_trained(name, said):
    page = site_pages.network_page(name)
    assert f'# {name}\n' in page and said in page.partition('\n## ')[0]
    assert f"timm.create_model('{name}')" in page
    listed = set(re.findall(r'\(\.\./checkpoints/([\w.-]+)\.md\)', page))
    assert listed == {f'{e["model"]}.{e["tag"]}{"" if e.get("memory", True) else "-trunk"}'
                      for e in ENTRIES if e['model'] == name}
    # a figure is marked as the authors' or the paper's, or has its command
    figures = page.partition('## Accuracy')[2].partition('\n## ')[0]
    for row in re.findall(r'^\|.* % \|.*$', figures, re.MULTILINE):
        assert 'not evaluated here' in row or 'measured: `' in row


@pytest.mark.parametrize('entry', [ENTRIES[0], ENTRIES[1], ENTRIES[2], ENTRIES[11], ENTRIES[-1]],
                         ids=lambda e: f'{e["model"]}.{e["tag"]}')
def test_checkpoint_page_has_what_the_manifest_has(entry):
    key = entry['model'], entry['tag'], entry.get('memory', True)
    page = site_pages.checkpoint_page(own_checkpoints()[key])
    for field in ('tag', 'kind', 'license', 'sha256', 'commit', 'repo', 'source_commit', 'source_blob', 'source_path'):
        assert str(entry.get(field) or '') in page, field
    for value in [*entry.get('reported', {}).values(), *entry.get('measured', {}).values()]:
        assert f'{value:.2f} %' in page
    assert ('Not a trained network' in page) == (entry['kind'] in ('warm_start', 'initialisation'))
    assert not page.startswith('---') and 'pretrained=True' in page


def test_network_page_loads_the_weights_that_there_are():
    assert "'mlfm_mobilenetv2_050.paper_in100', pretrained=True" in site_pages.network_page('mlfm_mobilenetv2_050')
    assert 'pretrained=True)' not in site_pages.network_page('gssdnet_o2_100')


def test_first_page_has_a_row_for_every_network():
    table = site_pages.networks_table()
    assert len(re.findall(r'<a href="networks/\w+/">', table)) == len(site_pages.network_names())
    row = next(line for line in table.splitlines() if 'mlfm_resnet50' in line and 'se' not in line)
    assert re.sub(r'<[^>]+>', '|', row).strip('|').replace('||||', '|').replace('||', '|').split('|') == [
        'mlfm_resnet50', 'ResNet', '27.99', '6.478', '80.16', '81.80', '1.25', "timm's, trunk"]


def test_commands_page_has_every_command():
    page = site_pages.commands_page()
    for command in ('predict', 'imagenet100 prepare', 'segment train'):
        assert f' mlfm-zoo {command}\n' in page and f'usage: mlfm-zoo {command} ' in page
    assert '--crop-size H W' in page


def test_manifest_page_explains_every_field():
    page = site_pages.manifest_page()
    for field in ENTRIES[1]:
        assert f'| `{field}` |' in page
    assert '| `sha256` |  | Digest of the file, 64 hexadecimal digits; None where it is not known. |' in page
    assert '| `model` | yes |' in page


def test_names_in_tables_become_links():
    table = '| `mlfm_resnet10` | 1 |\n| `mlfm_mobilenetv2_010.paper_in100`, `memory=False` | 2 |\n| `other` | 3 |\n'
    assert site_pages.link_names(table) == (
        '| [`mlfm_resnet10`](networks/mlfm_resnet10.md) | 1 |\n'
        '| [`mlfm_mobilenetv2_010.paper_in100`, `memory=False`](checkpoints/mlfm_mobilenetv2_010.paper_in100-trunk.md) '
        '| 2 |\n| `other` | 3 |\n')


@pytest.mark.slow
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_from_top_to_bottom(path, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get('outputs') or cell.get('execution_count') for cell in notebook.cells)  # as committed
    page, pictures = markdown_of(run(notebook), path.stem)
    assert '360 of 360 are right' in page
    assert sorted(pictures) == ['tour-1.png', 'tour-2.png']
    assert all(f']({name})' in page and content.startswith(b'\x89PNG') for name, content in pictures.items())
    assert 'Traceback' not in page and 'site-packages' not in page
