"""`predict` as a command and as functions, on digits and, where they are there, on the authors' network and photos."""

import csv
import io
import json
import os

import pytest
import timm
from PIL import Image

from digits import write_digits
from mlfm_zoo.workflow.predict import (
    better_checkpoints,
    class_labels,
    find_images,
    is_here,
    predict,
    trained_checkpoints,
)
from mlfm_zoo_cli import main


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp('digits'), 0, 12) / 'val'


def test_text_json_csv_and_picture(digits, tmp_path, run):
    files = find_images([digits])
    assert len(files) == 12 and files == sorted(files)
    command = ['predict', digits, '--model', 'test_mlfm_resnet', '--topk', '3']
    text = run(*command, '--output', tmp_path / 'picture.png').splitlines()
    assert [line for line in text if not line.startswith(' ')] == [str(f) for f in files]
    answers = json.loads(run(*command, '--format', 'json'))
    rows = list(csv.DictReader(io.StringIO(run(*command, '--format', 'csv'))))
    assert [(row['file'], row['rank']) for row in rows] == [(str(f), rank) for f in files for rank in '123']
    for file, found, row in zip(files, answers, rows[::3]):
        best = found['answers'][0]
        assert found['file'] == str(file) and best['label'] == file.parent.name == row['label']  # it knows its digits
        probabilities = [a['probability'] for a in found['answers']]
        assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) <= 1.0001
    with Image.open(tmp_path / 'picture.png') as picture:
        assert picture.width > 4 * 256 and picture.height > 3 * 256
        assert len(picture.getcolors(1 << 24)) > 20
    assert [p.name for p in tmp_path.iterdir()] == ['picture.png']


@pytest.mark.parametrize('arguments', [
    '%s/nothing', '%s/empty', '%s/image.png --model nothing', '%s/image.png --output %s/picture',
    '%s/image.png --output %s/nothing/picture.png', '%s/image.png --output %s/image.png',
    '%s/image.png --device nothing', '%s/image.png --model-kwargs num_classes=0',
])
def test_what_cannot_be_done(arguments, tmp_path, fail):
    (tmp_path / 'empty').mkdir()
    Image.new('RGB', (64, 64)).save(tmp_path / 'image.png')
    before = sorted(tmp_path.rglob('*'))
    model = [] if '--model ' in arguments else ['--model', 'test_mlfm_resnet']
    fail('predict', *arguments.replace('%s', str(tmp_path)).split(), *model)
    assert sorted(tmp_path.rglob('*')) == before


def test_labels():
    """From the config or a registered tag, and never from the number of outputs."""
    for name in ('resnet18.a1_in1k', 'mlfm_mobilenetv2_100.paper_in100'):
        assert class_labels(timm.create_model(name, device='meta'))[0].startswith('tench')
    assert class_labels(timm.create_model('test_mlfm_resnet', device='meta')) == list('0123456789')
    for name in ('gssdnet_o1_050', 'mlfm_resnet10', 'mlfm_mobilenetv2_100.paper_in100'):
        model = timm.create_model(name, num_classes=100, device='meta')
        for given in (dict(source='local-dir'), dict(source='', file='w.pth')) if 'paper' in name else ({},):
            model.pretrained_cfg.update(given)  # weights of the caller: the tag remains
            assert class_labels(model) == [f'class {index}' for index in range(100)]
    model = timm.create_model('resnet18', num_classes=3, device='meta')
    assert class_labels(model) == ['class 0', 'class 1', 'class 2']
    for names in (['a', 'b', 'c'], {'0': 'a', '1': 'b', '2': 'c'}):
        model.pretrained_cfg.update(label_names=names, label_descriptions={'a': 'the first'})
        assert class_labels(model) == ['the first', 'b', 'c']


def test_labels_of_the_caller(digits, fail):
    model = timm.create_model('test_mlfm_resnet', pretrained=True)
    files = find_images([digits])
    found = [prediction.answers[0].label for _, prediction in predict(model, files, labels='abcdefghij')]
    assert found == ['abcdefghij'[int(file.parent.name)] for file in files]
    with pytest.raises(ValueError, match='has 10 outputs, expected 3'):
        next(predict(model, files, labels='abc'))
    error = fail('predict', files[0], '--model', 'test_mlfm_resnet', '--imagenet100')
    assert 'has 10 outputs, expected 100' in error


def test_names_cannot_forge_answers(digits, tmp_path, run):
    """Names of files and classes with newlines, escape sequences and bytes that are no UTF-8."""
    folder = tmp_path / 'model'
    names = ['\x1b[2K\n   99.9 %  eagle', *'123456789']
    timm.models.save_for_hf(timm.create_model('test_mlfm_resnet'), folder, model_config=dict(label_names=names))
    content = find_images([digits])[0].read_bytes()
    for name in (b'a\n  99.9 %  eagle.png', b'b\xff.png'):
        (tmp_path / os.fsdecode(name)).write_bytes(content)
    command = ['predict', tmp_path, '--model', f'local-dir:{folder}', '--topk', '10']
    text = run(*command, '--output', tmp_path / 'picture.png')
    assert text.isascii() and '\x1b' not in text and len(text.splitlines()) == 2 * 11
    assert '\\n' in text and '\\udcff' in text
    assert len(run(*command, '--format', 'csv').splitlines()) == 1 + 20 + 10  # and the picture's
    rows = json.loads(run(*command, '--format', 'json'))
    assert {a['label'] for row in rows for a in row['answers']} == set(names)


def test_damaged_and_odd_images_among_many(digits, tmp_path, capsys):
    """The others are answered, and what is wrong is said at the end."""
    good = find_images([digits])[0].read_bytes()
    (tmp_path / 'good.png').write_bytes(good)
    (tmp_path / 'link.png').symlink_to('good.png')
    (tmp_path / 'dangling.png').symlink_to('nowhere.png')
    (tmp_path / '.hidden.png').write_bytes(b'left over')
    (tmp_path / 'readme.txt').write_text('not an image, and not taken for one')
    (tmp_path / 'damaged.dds').write_bytes(b'DDS ' + bytes(200))
    Image.new('L', (1, 200_000)).save(tmp_path / 'strip.png')
    Image.new('F', (8, 8)).save(tmp_path / 'floats.tif')
    found = dict(predict(timm.create_model('test_mlfm_resnet', pretrained=True), find_images([tmp_path])))
    wrong = {file.name: answer for file, answer in found.items() if isinstance(answer, str)}
    assert wrong.keys() == {'dangling.png', 'damaged.dds', 'strip.png', 'floats.tif'}
    assert all(str(tmp_path / name) in answer for name, answer in wrong.items())
    assert found[tmp_path / 'good.png'].answers == found[tmp_path / 'link.png'].answers
    assert main(['predict', str(tmp_path), '--model', 'test_mlfm_resnet', '--format', 'json']) == 1
    said = capsys.readouterr()
    assert [row['file'] for row in json.loads(said.out)] == [str(tmp_path / f'{name}.png') for name in ('good', 'link')]
    assert said.err == (f'error: {tmp_path / "damaged.dds"} cannot be decoded as an image: repair or remove it '
                        '(and 3 more such files).\n')


def test_best_on_this_machine_first():
    best, *others = trained_checkpoints()
    assert best.tag == 'imagenette' and best.places == ('package',)  # nothing is in the cache of the tests
    assert better_checkpoints(best)[0].name == 'mlfm_mobilenetv2_100.paper_in100'
    assert others[-1].num_classes == 100 and not any(map(is_here, better_checkpoints(best)))
