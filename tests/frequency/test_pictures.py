"""The pictures of the command, and its answer without matplotlib."""

import os
import shutil
import sys

import pytest
from PIL import Image

from helpers.tables import read_table
from mlfm_zoo import frequency
from mlfm_zoo.frequency.pictures import _labels
from mlfm_zoo_cli import main

MODEL = 'test_mlfm_resnet'


def test_command(data, tmp_path, capsys):
    """All three levels and the plane of frequencies, of two models in one pass, with pictures."""
    file = min(p.relative_to(data) for p in data.rglob('*.png'))
    out = tmp_path / 'out\x1b[31m'
    command = ['frequency', MODEL, f'{MODEL},memory_forget_last=False', str(data), '--output', str(out),
               '--radii', '1', '4', '--samples', str(file), '--scales', '1', '2', '--fourier', '4',
               '--fourier-extent', '1', '--workers', '0', '--batch-size', '30', '--form', 'gaussian']
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert '100.0 at 46' in printed and '\x1b' not in printed
    pictures = {p.name for p in out.glob('*.png')}
    assert pictures == {
        'overall.png', 'bands.png', f'classes-{MODEL}.png', f'classes-{MODEL}_memory_forget_last=False.png',
        f'sample-{str(file)[:-4].replace("/", "_")}.png', 'fourier.png'}
    for picture in pictures:
        with Image.open(out / picture) as image:
            assert min(image.size) >= 200 and len(image.convert('L').getcolors(256) or [0] * 256) > 10, picture
    scales = read_table(out / 'scales.csv')
    assert {(row['scale'], row['radius']) for row in scales} == {(s, r) for s in '12' for r in ('0', '1', '4', '46')}
    # at scale 1 the curve is that of the analysis
    samples = {(r['model'], r['radius']): float(r['probability']) for r in read_table(out / 'samples.csv')
               if r['file'] == str(file) and r['filter'] == 'lowpass'}
    curve = {(r['model'], r['radius']): float(r['probability']) for r in scales if r['scale'] == '1'}
    assert curve == pytest.approx(samples, rel=1e-4)
    plane = read_table(out / 'fourier.csv')
    assert {(int(r['fy']), int(r['fx'])) for r in plane} == {(0, 0), (0, 1), (1, -1), (1, 0), (1, 1)}
    assert all(r['n'] == '60' for r in plane)
    assert [p.name for p in out.iterdir() if p.name.startswith('.')] == ['.lock']


def test_names_of_anyone(data, models, tmp_path):
    """Names that are no formulas, no UTF-8 or escapes, and images whose pictures would have one name."""
    names = os.fsdecode(b'caf\xe9$x_'), 'a$b$\x1b[31m\n'
    for name, digit in zip(names, '01'):
        shutil.copytree(data / digit, tmp_path / 'data' / name)
    image = min((data / '0').iterdir())
    files = [f'{names[0]}/{name}' for name in ('a.png', 'a.jpg', 'a_.png', os.fsdecode(b'\xff.png'))]
    for file in files:
        shutil.copyfile(image, tmp_path / 'data' / file)
    out = tmp_path / 'out'
    classes = [names[0], names[1], *'23456789']
    probe = frequency.Probe({'$a_\x1b': models[MODEL]}, tmp_path / 'data', classes, num_workers=0)
    frequency.analyse(probe, out, radii=[2], filters=['lowpass'])
    rows, curves = frequency.overall_level(out), frequency.class_level(out)
    assert rows[-1].top1 == 100 and {curve.name for curve in curves} == set(names)
    frequency.draw_levels(out, rows, curves)
    pictures = [picture for file in files for picture in frequency.draw_samples(probe, out, [file], [1])]
    assert len(set(pictures)) == 4 and all(picture.exists() for picture in pictures)
    assert len((out / 'samples.csv').read_bytes().split(b'caf\xe9$x_/\xff.png')) == 1 + len(rows)
    frequency.draw_fourier(out, frequency.fourier_errors(probe, out, norm=1, extent=0), 1)


def test_legends_name_the_folder_of_a_local_model():
    names = 'resnet18', 'local-dir:plain', 'local-dir:/runs/a/,memory=False', 'local-dir:1/b', 'local-dir:2/b'
    assert list(_labels(names).values()) == ['resnet18', 'plain', 'a,memory=False', 'local-dir:1/b', 'local-dir:2/b']


def test_without_matplotlib(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    command = ['frequency', MODEL, str(data), '--output', str(tmp_path / 'out'), '--workers', '0', '--radii', '1']
    assert main(command) == 1 and not (tmp_path / 'out').exists()
    error = capsys.readouterr().err
    assert "pip install 'mlfm-zoo[frequency]'" in error and error.count('\n') == 1
    assert main([*command, '--no-pictures']) == 0
    assert (tmp_path / 'out' / 'overall.csv').exists()
