"""The analysis of models on folders of digits: tables, pictures, resumption and what it refuses."""

import csv
import json
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from helpers.digit_folders import write_digits
from mlfm_zoo import frequency
from mlfm_zoo.cli import main
from mlfm_zoo.frequency.analysis import judge
from mlfm_zoo.workflow.evaluate import evaluate

MODEL = 'test_mlfm_resnet'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp('digits'), 10, 60) / 'val'


@pytest.fixture(scope='module')
def models():
    """The network that knows digits, and one of another size of image that knows nothing."""
    torch.manual_seed(0)
    other = timm.create_model('resnet10t', num_classes=10)
    other.pretrained_cfg = dict(other.pretrained_cfg, input_size=(3, 33, 33))
    return {MODEL: timm.create_model(MODEL, pretrained=True), 'other': other}


@pytest.fixture(scope='module')
def analysed(data, models, tmp_path_factory):
    folder = tmp_path_factory.mktemp('analysis')
    probe = frequency.Probe(models, data, batch_size=16, num_workers=0)
    frequency.analyse(probe, folder, radii=[1, 3, 8])
    return probe, folder


def table(file):
    with open(file, newline='', encoding='utf-8') as f:
        return list(csv.DictReader(f))


def test_samples_against_timm(analysed, models):
    """Every answer, once more: each image prepared, filtered by numpy and shown to the model by itself."""
    probe, folder = analysed
    rows = table(folder / 'samples.csv')
    radii = sorted({float(row['radius']) for row in rows})
    assert radii == [0, 1, 3, 8, 46]  # 46 is the full radius of 64 x 64
    assert len(rows) == 60 * 2 * 2 * len(radii)
    files = sorted({row['file'] for row in rows})
    for name, model in models.items():
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
        for file in files[::20]:
            with Image.open(probe.root / file) as opened:
                image = transform(opened.convert('RGB' if model.in_chans == 3 else 'L')).double().numpy()
            height, width = image.shape[-2:]
            distance = np.hypot(
                (np.fft.fftfreq(height) * height)[:, None], np.fft.fftfreq(width) * width)
            for row in (r for r in rows if (r['file'], r['model']) == (file, name)):
                keep = distance <= float(row['radius'])
                keep = keep if row['filter'] == 'lowpass' else ~keep
                seen = torch.from_numpy(np.fft.ifft2(np.fft.fft2(image) * keep).real).float()
                with torch.inference_mode():
                    probabilities = model(seen[None]).softmax(1)[0]
                label = int(row['class'])
                assert float(row['probability']) == pytest.approx(probabilities[label].item(), abs=1e-4)
                order = probabilities.argsort(descending=True).tolist()
                if probabilities.sort().values.diff().min() > 1e-4:
                    assert int(row['rank']) == order.index(label) + 1
                    assert row['predicted'] == str(order[0])


def test_overall(analysed, data, models):
    """Counts of samples.csv; the full radius is the plain accuracy, and the empty high-pass DC's complement."""
    _, folder = analysed
    rows = frequency.overall_level(folder)
    written = table(folder / 'overall.csv')
    assert list(written[0]) == ['model', 'filter', 'radius', 'top1', 'top5', 'n', 'low', 'high']
    samples = table(folder / 'samples.csv')
    for row, line in zip(rows, written, strict=True):
        ranks = [int(s['rank']) for s in samples
                 if (s['model'], s['filter'], float(s['radius'])) == (row.model, row.filter, row.radius)]
        assert row.n == len(ranks) == 60
        assert row.top1 == pytest.approx(100 * ranks.count(1) / 60) == pytest.approx(float(line['top1']), abs=1e-4)
        assert row.top5 == pytest.approx(100 * sum(rank <= 5 for rank in ranks) / 60)
        assert row.low <= row.top1 <= row.high
        assert (row.low, row.high) == pytest.approx(wilson(ranks.count(1), 60))
    for name, model in models.items():
        plain = evaluate(model, data, num_workers=0)
        [full] = [r for r in rows if (r.model, r.filter, r.radius) == (name, 'lowpass', 46)]
        assert (full.top1, full.top5) == (100 * plain.top1 / 60, 100 * plain.top5 / 60)


def wilson(right, n):
    """The roots of (share - p)^2 = z^2 p (1 - p) / n, in percent."""
    z2 = 1.959964 ** 2
    roots = np.roots([1 + z2 / n, -(2 * right / n + z2 / n), (right / n) ** 2])
    return tuple(100 * np.sort(np.clip(roots.real, 0, 1)))


def test_classes(analysed):
    _, folder = analysed
    curves = frequency.class_level(folder)
    samples = table(folder / 'samples.csv')
    assert len(curves) == 2 * 2 * 10
    for curve in curves:
        rows = [s for s in samples if (s['model'], s['filter'], s['class']) == (curve.model, curve.filter, curve.name)]
        right = Counter(float(s['radius']) for s in rows if s['rank'] == '1')
        assert curve.n * len(curve.radii) == len(rows)
        assert curve.top1 == pytest.approx([100 * right[radius] / curve.n for radius in curve.radii])
        assert (curve.band is None) == (curve.filter == 'highpass' or curve.top1[-1] == 0)
    assert len(table(folder / 'classes.csv')) == sum(len(curve.radii) for curve in curves)


@pytest.mark.parametrize('top1, band', [
    ([0, 0, 50, 100, 100], (12, 28)),  # 10 % at a fifth of the way from 10 to 20, 90 % at 8 tenths from 20 to 30
    ([80, 90, 90, 90, 90], (0, 1)), ([0, 0, 0, 0, 40], (31, 39)), ([0, 100, 0, 100, 100], (1, 9)),
    ([9, 0, 0, 0, 0], None)])
def test_sensitive_band(top1, band):
    found = frequency.sensitive_band([0, 10, 20, 30, 40], top1)
    assert found == (None if band is None else pytest.approx(band))


def test_interrupted(analysed, models, data, tmp_path):
    """From wherever it stopped, it ends with the same bytes."""
    _, folder = analysed
    whole = (folder / 'samples.csv').read_bytes()
    lines = whole.splitlines(keepends=True)
    for kept in (0, 1, 5, 1 + 20 * 16, 1 + 20 * 16 + 3, 1 + 20 * 37, len(lines)):
        for torn in (b'', lines[-1][:-7]):
            shutil.copy(folder / 'settings.json', tmp_path)
            (tmp_path / 'samples.csv').write_bytes(b''.join(lines[:kept]) + torn)
            (tmp_path / 'skipped.csv').write_bytes(b'file,why\r\n')
            probe = frequency.Probe(models, data, batch_size=16, num_workers=0)
            frequency.analyse(probe, tmp_path, radii=[1, 3, 8])
            assert (tmp_path / 'samples.csv').read_bytes() == whole, (kept, torn)
    with pytest.raises(ValueError, match=r'other settings \(radii\): name another folder'):
        frequency.analyse(probe, tmp_path, radii=[1, 3, 9])
    with pytest.raises(ValueError, match=r'other settings \(batch_size\)'):
        frequency.analyse(frequency.Probe(models, data, batch_size=8), tmp_path, radii=[1, 3, 8])


def test_killed_in_the_middle(data, tmp_path):
    """A process that dies, for good; the next one goes on, and the tables are those of one that did not."""
    code = f'''
import os, sys, timm, mlfm_zoo
from mlfm_zoo import frequency
from mlfm_zoo.frequency import analysis
judge, calls = analysis.judge, []
def count(*args):
    calls.append(1)
    if len(calls) > int(sys.argv[2]): os._exit(9)
    return judge(*args)
analysis.judge = count
models = dict(digits=timm.create_model({MODEL!r}, pretrained=True))
frequency.analyse(frequency.Probe(models, {str(data)!r}, batch_size=16, num_workers=0), sys.argv[1], radii=[1, 3])
'''
    for folder, limits in (('whole', [10**6]), ('parts', [11, 20, 10**6])):
        for limit in limits:
            done = subprocess.run([sys.executable, '-c', code, str(tmp_path / folder), str(limit)], capture_output=True)
            assert done.returncode == (0 if limit == 10**6 else 9), done.stderr
    for name in ('samples.csv', 'skipped.csv', 'settings.json'):
        assert (tmp_path / 'whole' / name).read_bytes() == (tmp_path / 'parts' / name).read_bytes()


def test_corrupt_images(data, tmp_path, capsys):
    """Skipped and listed, also when a batch has no other, and when the analysis goes on."""
    folder = shutil.copytree(data, tmp_path / 'data')
    files = sorted(folder.rglob('*.png'))
    for file in files[:4] + files[20:21]:
        file.write_bytes(file.read_bytes()[:60])
    command = ['frequency', MODEL, str(folder), '--output', str(tmp_path / 'out'), '--radii', '2', '--batch-size', '4',
               '--no-pictures', '--workers', '0']
    for _ in range(2):
        assert main(command) == 0
        printed = capsys.readouterr()
        assert '5 of 60 images cannot be decoded' in printed.err and '55 images;' in printed.out
        names = [row['file'] for row in table(tmp_path / 'out' / 'skipped.csv')]
        assert names == [str(f.relative_to(folder)) for f in files[:4] + files[20:21]]
        assert len({row['file'] for row in table(tmp_path / 'out' / 'samples.csv')}) == 55
    for file in files:
        file.write_bytes(b'no image')
    assert main([*command[:4], str(tmp_path / 'none'), *command[5:]]) == 1
    assert 'None of the 60 images' in capsys.readouterr().err


def test_command(data, tmp_path, capsys):
    """All three levels and the plane of frequencies, of two models in one pass, with pictures."""
    file = min(p.relative_to(data) for p in data.rglob('*.png'))
    out = tmp_path / 'out'
    command = ['frequency', MODEL, f'{MODEL},memory_forget_last=False', str(data), '--output', str(out),
               '--radii', '1', '4', '--samples', str(file), '--scales', '1', '2', '--fourier', '4',
               '--fourier-extent', '1', '--workers', '0', '--batch-size', '30']
    assert main(command) == 0
    assert '100.0 at 46' in capsys.readouterr().out
    pictures = {p.name for p in out.glob('*.png')}
    assert pictures == {
        'overall.png', 'bands.png', f'classes-{MODEL}.png', f'classes-{MODEL}_memory_forget_last=False.png',
        f'sample-{str(file)[:-4].replace("/", "_")}.png', 'fourier.png'}
    for picture in pictures:
        with Image.open(out / picture) as image:
            assert min(image.size) >= 200 and len(image.convert('L').getcolors(256) or [0] * 256) > 10, picture
    scales = table(out / 'scales.csv')
    assert {(row['scale'], row['radius']) for row in scales} == {(s, r) for s in '12' for r in ('0', '1', '4', '46')}
    # at scale 1 the curve is that of the analysis
    samples = {(r['model'], r['radius']): r['rank'] for r in table(out / 'samples.csv')
               if r['file'] == str(file) and r['filter'] == 'lowpass'}
    assert {(r['model'], r['radius']): r['rank'] for r in scales if r['scale'] == '1'} == samples
    assert json.loads((out / 'settings.json').read_text())['form'] == 'ideal'
    plane = table(out / 'fourier.csv')
    assert {(int(r['fy']), int(r['fx'])) for r in plane} == {(0, 0), (0, 1), (1, -1), (1, 0), (1, 1)}
    assert all(r['n'] == '60' for r in plane)
    assert not [p for p in out.iterdir() if p.suffix == '.tmp' or p.name.startswith('.')]


def test_form_and_pixels(data, tmp_path, models):
    """The options reach the filters: a Gaussian of the same radius answers otherwise, and pixels without DC too."""
    answers = {}
    for options in (dict(), dict(form='gaussian'), dict(pixels=True)):
        folder = tmp_path / '-'.join(map(str, options.values())) / 'out'
        frequency.analyse(frequency.Probe({MODEL: models[MODEL]}, data, num_workers=0), folder, radii=[2], **options)
        answers[str(options)] = [(r['filter'], r['radius'], r['probability']) for r in table(folder / 'samples.csv')]
    ideal, gaussian, pixels = answers.values()
    changed = {a[:2] for a, b in zip(ideal, gaussian) if a != b}
    assert changed >= {('lowpass', '2'), ('highpass', '2')}
    # low-pass keeps DC, so that both are the same to rounding
    assert all(abs(float(a[2]) - float(b[2])) < 1e-3 for a, b in zip(ideal, pixels) if a[0] == 'lowpass')
    assert any(abs(float(a[2]) - float(b[2])) > 1e-3 for a, b in zip(ideal, pixels) if a[0] == 'highpass')


@pytest.mark.parametrize('size', [(8, 8), (9, 12)])
def test_fourier_basis(size):
    """Norm 1, real, and two coefficients; together with phases they span what there is, checked by orthogonality."""
    for fy in range(-(size[0] // 2), size[0] // 2 + 1):
        for fx in range(size[1] // 2 + 1):
            wave = frequency.fourier_basis(*size, fy, fx)
            assert wave.norm() == pytest.approx(1)
            spectrum = np.abs(np.fft.fft2(wave.double().numpy()))
            places = {tuple(place) for place in np.argwhere(spectrum > 1e-4)}
            assert places == {(fy % size[0], fx % size[1]), (-fy % size[0], -fx % size[1])}
    with pytest.raises(ValueError, match='no frequency of'):
        frequency.fourier_basis(8, 8, 5, 0)


def test_fourier_errors(data, models, tmp_path):
    """What an added wave of no size does not change; a resumed map is that of one run; DC changes by sign alone."""
    probe = frequency.Probe({MODEL: models[MODEL]}, data, batch_size=16, num_workers=0)
    tiny = frequency.fourier_errors(probe, tmp_path / 'tiny', norm=1e-6, extent=1)[MODEL]
    assert set(tiny.values()) == {0.0} and len(tiny) == 9  # of 60 digits the network knows all
    large = frequency.fourier_errors(probe, tmp_path / 'large', norm=30, extent=1)[MODEL]
    assert large[0, 1] == large[0, -1] and large[1, -1] == large[-1, 1] and max(large.values()) > 0.2
    whole = (tmp_path / 'large' / 'fourier.csv').read_bytes()
    batches = probe.batches

    def stop_early(start=0, progress=False):
        for i, batch in enumerate(batches(start, progress)):
            if i == 2:
                raise KeyboardInterrupt
            yield batch
    probe.batches = stop_early
    with pytest.raises(KeyboardInterrupt):
        frequency.fourier_errors(probe, tmp_path / 'parts', norm=30, extent=1)
    assert table(tmp_path / 'parts' / 'fourier.csv')[0]['n'] == '32'
    probe.batches = batches
    assert frequency.fourier_errors(probe, tmp_path / 'parts', norm=30, extent=1)[MODEL] == large
    assert (tmp_path / 'parts' / 'fourier.csv').read_bytes() == whole
    for arguments in (dict(norm=0), dict(norm=float('nan')), dict(norm=1, extent=33), dict(norm=1, extent=-1)):
        with pytest.raises(ValueError, match='expected'):
            frequency.fourier_errors(probe, tmp_path / 'no', **arguments)


def test_judge_of_ties_and_no_numbers():
    labels = torch.tensor([1, 1, 0, 2])
    logits = torch.tensor([[1.0, 1, 0], [0, 1, 1], [float('nan'), 1, 2], [3.0, 2, 1]])
    assert [rank for _, rank, _ in judge(logits, labels)] == [2, 1, 3, 3]


@pytest.mark.parametrize('change, sentence', [
    (['--radii', '-1'], '0 or more'), (['--radii', 'nan'], '0 or more'), (['--radii'], 'There is no radius'),
    (['--device', 'npu:9'], 'There is no device'), (['--samples', 'x.png'], 'x.png is no image in'),
    (['--imagenet100'], 'no images of the expected classes'),
    (['--scales', '0.5', '--samples', 'FILE'], 'of 1 or more')])
def test_bad_arguments(change, sentence, data, tmp_path, capsys):
    file = str(min(p.relative_to(data) for p in data.rglob('*.png')))
    change = [file if word == 'FILE' else word for word in change]
    assert main(['frequency', MODEL, str(data), '--output', str(tmp_path / 'out'), '--workers', '0', *change]) == 1
    error = capsys.readouterr().err
    assert sentence in error and error.count('\n') == 1


def test_bad_models_and_data(data, tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    one = tmp_path / 'one' / '3'
    shutil.copytree(data / '3', one)
    for model, folder, sentence in (
        ('resnet_999', data, 'timm knows no model named resnet_999'),
        (MODEL, tmp_path / 'nowhere', 'There is no folder at'),
        (MODEL, tmp_path / 'empty', 'holds no images'), (MODEL, one.parent, '10 classes and the data has 1'),
        ('mlfm_resnet18', data, 'not published'), ('mlfm_resnet18,depth', data, 'NAME=VALUE'),
    ):
        command = ['frequency', model, str(folder), '--output', str(tmp_path / 'out'), '--workers', '0']
        if 'depth' in model:
            with pytest.raises(SystemExit):
                main(command)
        else:
            assert main(command) == 1
        assert sentence in capsys.readouterr().err, sentence
    with pytest.raises(ValueError, match='There is no model'):
        frequency.Probe({}, data)
    headless = timm.create_model(MODEL, num_classes=0)
    with pytest.raises(ValueError, match='0 classes and the data has 10'):
        frequency.Probe({MODEL: headless}, data)


def test_one_class_of_many(data, tmp_path):
    """Names of classes given, a folder may hold one of them alone: its curve is the curve."""
    shutil.copytree(data / '3', tmp_path / 'one' / '3')
    model = timm.create_model(MODEL, pretrained=True)
    probe = frequency.Probe({MODEL: model}, tmp_path / 'one', class_names=list('0123456789'), num_workers=0)
    frequency.analyse(probe, tmp_path / 'out', radii=[2], filters=['lowpass'])
    rows, curves = frequency.overall_level(tmp_path / 'out'), frequency.class_level(tmp_path / 'out')
    assert [r.top1 for r in rows] == curves[0].top1 and len(curves) == 1 and curves[0].name == '3'
    assert frequency.draw_levels(tmp_path / 'out', rows, curves)


def test_without_matplotlib(data, tmp_path):
    code = f'''
import sys
sys.modules['matplotlib'] = None
from mlfm_zoo.cli import main
command = ['frequency', {MODEL!r}, {str(data)!r}, '--output', {str(tmp_path / 'out')!r}, '--workers', '0']
assert main(command) == 1
assert main([*command, '--no-pictures']) == 0
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pip install 'mlfm-zoo[frequency]'" in done.stderr and done.stderr.count('\n') == 1
    assert (tmp_path / 'out' / 'overall.csv').exists()
