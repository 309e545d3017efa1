"""One pass over a folder of digits: answers, resumption, damaged images, bad arguments."""

import itertools
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from helpers.tables import read_table
from mlfm_zoo import frequency
from mlfm_zoo._files import locked
from mlfm_zoo.frequency.analysis import judge
from mlfm_zoo_cli import main

MODEL = 'test_mlfm_resnet'


def test_samples_against_timm(analysed, models):
    """Every answer, once more: each image prepared, filtered by numpy and shown to the model by itself."""
    probe, folder = analysed
    rows = read_table(folder / 'samples.csv')
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


def test_resumed(data, models, analysed, tmp_path):
    """From wherever it stopped, and whatever a killed run wrote after whole batches, it ends with the same bytes."""
    _, folder = analysed
    probe = frequency.Probe(models, data, batch_size=16, num_workers=0)
    batches = probe.batches
    output = tmp_path / 'parts'
    probe.batches = lambda *args: itertools.islice(batches(*args), 1)
    for _ in range(3):  # batches
        frequency.analyse(probe, output, radii=[1, 3, 8])
        for name in ('samples.csv', 'skipped.csv'):
            with open(output / name, 'a') as f:
                f.write('9/0048.png,9,other,highpass,46,0.10')
    probe.batches = batches
    for _ in range(2):
        frequency.analyse(probe, output, radii=[1, 3, 8])
        for name in ('samples.csv', 'skipped.csv', 'settings.json'):
            assert (output / name).read_bytes() == (folder / name).read_bytes(), name
    with pytest.raises(ValueError, match=r'other settings \(batch_size, radii\): name another folder'):
        frequency.analyse(frequency.Probe(models, data, batch_size=8), output, radii=[1, 3, 9])


@pytest.mark.parametrize('name, content', [
    ('settings.json', ''), ('settings.json', '5'), ('settings.json', '{"a":' * 99999), ('progress.json', '[]'),
    ('progress.json', '{"images": "x", "answered": 1, "samples": 1, "skipped": 1}'),
    ('progress.json', '{"images": 999, "answered": 1, "samples": 1, "skipped": 1}'),
    ('samples.csv', 'model,filter,class,radius,rank\n'), ('samples.csv', '\0' * 99999), ('samples.csv', 'x' * 999999),
    ('samples.csv', 'model,filter,class,radius,rank\n' + 'a\n' * 99999), ('skipped.csv', '')])
def test_damaged_files(name, content, analysed, tmp_path):
    probe, folder = analysed
    shutil.copytree(folder, tmp_path / 'copy')
    (tmp_path / 'copy' / name).write_text(content)
    with pytest.raises(ValueError, match=f'{name} is damaged .*: remove .*copy, or name another folder'):
        frequency.analyse(probe, tmp_path / 'copy', radii=[1, 3, 8])
        frequency.overall_level(tmp_path / 'copy')


def test_two_runs_into_one_folder(data, models, tmp_path):
    probe = frequency.Probe({MODEL: models[MODEL]}, data, num_workers=0)
    with locked(tmp_path):
        for run in (frequency.analyse, lambda *args: frequency.fourier_errors(*args, norm=1, extent=0)):
            with pytest.raises(RuntimeError, match='in use by another run'):
                run(probe, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['.lock']


def test_corrupt_images(data, tmp_path, capsys):
    """Skipped and listed with the reason, also when a batch has no other, and when the analysis resumes."""
    folder = shutil.copytree(data, tmp_path / 'data')
    files = sorted(folder.rglob('*.png'))
    skipped = files[:4] + files[20:22]
    for file in skipped[:5]:
        file.write_bytes(file.read_bytes()[:60])
    Image.new('F', (64, 64)).save(skipped[5], 'TIFF')
    command = ['frequency', MODEL, str(folder), '--output', str(tmp_path / 'out'), '--radii', '2', '--batch-size', '4',
               '--no-pictures', '--workers', '0']
    for _ in range(2):
        assert main(command) == 0
        printed = capsys.readouterr()
        assert '6 of 60 images cannot be decoded' in printed.err and '54 images;' in printed.out
        listed = read_table(tmp_path / 'out' / 'skipped.csv')
        assert [row['file'] for row in listed] == [str(file.relative_to(folder)) for file in skipped]
        assert 'cannot be decoded' in listed[4]['why'] and 'has pixels of mode F' in listed[5]['why']
        assert len({row['file'] for row in read_table(tmp_path / 'out' / 'samples.csv')}) == 54
    for file in files:
        file.write_bytes(b'no image')
    assert main([*command[:4], str(tmp_path / 'none'), *command[5:]]) == 1
    assert 'None of the 60 images' in capsys.readouterr().err


def test_form_and_pixels(data, tmp_path, models):
    """The options reach the filters: a Gaussian of the same radius answers otherwise, and pixels without DC too."""
    probe = frequency.Probe({MODEL: models[MODEL]}, data, num_workers=0)
    answers = []
    for i, options in enumerate([dict(), dict(form='gaussian'), dict(pixels=True)]):
        frequency.analyse(probe, tmp_path / str(i), radii=[2], **options)
        rows = read_table(tmp_path / str(i) / 'samples.csv')
        answers.append([(r['filter'], r['radius'], r['probability']) for r in rows])
    ideal, gaussian, pixels = answers
    changed = {a[:2] for a, b in zip(ideal, gaussian) if a != b}
    assert changed >= {('lowpass', '2'), ('highpass', '2')}
    # low-pass keeps DC, so that both are the same to rounding
    assert all(abs(float(a[2]) - float(b[2])) < 1e-3 for a, b in zip(ideal, pixels) if a[0] == 'lowpass')
    assert any(abs(float(a[2]) - float(b[2])) > 1e-3 for a, b in zip(ideal, pixels) if a[0] == 'highpass')


def test_judge_of_ties_and_no_numbers():
    labels = torch.tensor([1, 1, 0, 2])
    logits = torch.tensor([[1.0, 1, 0], [0, 1, 1], [float('nan'), 1, 2], [3.0, 2, 1]])
    assert [rank for _, rank, _ in judge(logits, labels)] == [2, 1, 3, 3]


@pytest.mark.parametrize('change, sentence', [
    (['--radii', '-1'], '0 or more'), (['--radii'], 'There is no radius'),
    (['--device', 'npu:9'], 'There is no device'), (['--samples', 'x.png'], 'x.png is no image in'),
    (['--imagenet100'], 'no images of the classes'),
    (['--scales', '0.5', '--samples', 'FILE', '--radii', '1'], 'of 1 or more')])
def test_bad_arguments(change, sentence, data, tmp_path, capsys):
    file = str(min(p.relative_to(data) for p in data.rglob('*.png')))
    change = [file if word == 'FILE' else word for word in change]
    assert main(['frequency', MODEL, str(data), '--output', str(tmp_path / 'out'), '--workers', '0', *change]) == 1
    error = capsys.readouterr().err
    assert sentence in error and error.count('\n') == 1


def test_models_that_do_not_fit(data, models):
    with pytest.raises(ValueError, match='There is no model'):
        frequency.Probe({}, data)
    with pytest.raises(ValueError, match='0 classes and the data has 10'):
        frequency.Probe({MODEL: timm.create_model(MODEL, num_classes=0)}, data)
    other = timm.create_model(MODEL)
    other.pretrained_cfg = dict(other.pretrained_cfg, label_names=[*'1023456789'])
    with pytest.raises(ValueError, match='The models name their classes differently'):
        frequency.Probe({MODEL: models[MODEL], 'other': other}, data)
