"""Folders of images against timm's own dataset and loader; unreadable images, wrong classes, missing devices."""

from pathlib import Path

import pytest
import timm
import torch
from timm.data import create_dataset, create_loader, resolve_model_data_config

from digits import load_split
from mlfm_zoo.data.folders import (
    data_config,
    image_mode,
    open_folder,
    open_images,
    read_batches,
    usable_device,
    walk_images,
)
from mlfm_zoo.data.images import UnreadableImage


@pytest.fixture(scope='module')
def digits():
    return load_split()[1]


@pytest.fixture
def folder(digits, tmp_path):
    """Three digits of each class, of the digits 0 to 4 only."""
    for digit in range(5):
        (tmp_path / str(digit)).mkdir()
        for i in (digits.labels == digit).nonzero().flatten().tolist()[:3]:
            digits.images[i].resize((80, 64)).save(tmp_path / str(digit) / f'{i}.png')
    return tmp_path


@pytest.mark.parametrize('name, crop_mode', [
    ('test_mlfm_resnet', 'center'), ('resnet18', 'center'), ('resnet18', 'squash'), ('resnet18', 'border')])
def test_batches_are_timms(folder, name, crop_mode):
    """Gray and RGB images, some of the classes only."""
    model = timm.create_model(name, pretrained_cfg_overlay=dict(crop_mode=crop_mode))
    config = data_config(model, 96)
    expected = create_loader(
        create_dataset('', folder, class_map={str(i): i + 1 for i in range(5)}, input_img_mode=image_mode(config)),
        batch_size=4, use_prefetcher=False, **resolve_model_data_config(model, dict(img_size=96)))
    actual = read_batches(open_folder(folder, named(None, 6), ['x', *'01234']), config, 4, num_workers=0)
    batches = list(zip(actual, expected, strict=True))
    assert len(batches) == 4
    for (images, targets), (their_images, their_targets) in batches:
        assert torch.equal(images, their_images) and torch.equal(targets, their_targets)


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('length', [5, 300])
def test_unreadable_image(folder, length, workers):
    bad = folder / '3' / 'bad.png'
    bad.write_bytes(next((folder / '3').iterdir()).read_bytes()[:length])
    config = data_config(timm.create_model('test_mlfm_resnet'))
    with pytest.raises(UnreadableImage) as error:
        list(read_batches(open_images(folder), config, 4, workers))
    assert str(error.value) == f'{bad} cannot be decoded as an image: repair or remove it.'


def named(names, num_classes):
    """A model whose config names its classes."""
    model = timm.create_model('test_mlfm_resnet', num_classes=num_classes, device='meta')
    model.pretrained_cfg['label_names'] = names
    return model


def test_classes(folder):
    with pytest.raises(ValueError, match='distinguishes 10 classes and the data has 5, 0, 1, 2, 3, 4: .*--imagenet100'):
        open_folder(folder, named(None, 10))
    with pytest.raises(ValueError, match='distinguishes 10 classes and the data has 11, 0, 1, 2'):
        open_folder(folder, named(None, 10), [str(i) for i in range(11)])
    with pytest.warns(UserWarning, match='2 folders in .* belong to no class and are left out, 3 among them'):
        dataset = open_folder(folder, named(None, 4), ['2', '1', '0', 'x'])
    assert dataset.reader.class_to_idx == {'2': 0, '1': 1, '0': 2, 'x': 3} and len(dataset) == 9
    dataset = open_folder(folder, named(list('43210'), 5))
    assert all(target == 4 - int(Path(file).parent.name) for file, target in dataset.reader.samples)
    with pytest.raises(ValueError, match='of the model are 0, 1, 2, 3, x, and the folders in .* are 0, 1, 2, 3, 4: '):
        open_folder(folder, named(list('0123x'), 5))
    with pytest.raises(ValueError, match='of the model are 0, 1, 2, 3, and the folders in'):  # two of one name
        open_folder(folder, named(list('01233'), 5))
    with pytest.raises(FileNotFoundError, match='of the classes a, b, c, d, e, only of 0, 1, 2, 3, 4: '):
        open_folder(folder, named(list('abcde'), 5))


def test_what_is_no_folder_of_images(folder):
    with pytest.raises(FileNotFoundError, match='There is no folder at .*none'):
        open_images(folder / 'none')
    (folder / '5').mkdir()
    with pytest.raises(FileNotFoundError, match='5 holds no images:'):
        open_images(folder / '5')
    for names in (None, list('012345')):
        with pytest.raises(FileNotFoundError, match='5 holds no images, expected those of a class'):
            open_folder(folder, named(names, 6))
    (folder / '5').rmdir()
    (folder / '5').symlink_to('nowhere')
    with pytest.raises(FileNotFoundError, match='5 is a link that leads nowhere'):
        open_folder(folder, named(None, 6))


def test_walk(folder, tmp_path_factory):
    """Linked folders count as in timm's own walk; hidden ones and circles, which timm reads, do not."""
    linked = tmp_path_factory.mktemp('linked')
    for digit in range(5):
        (linked / f'digit{2 * digit + 2}').symlink_to(folder / str(digit))
    dataset, theirs = open_images(linked), create_dataset('', linked)
    assert dataset.reader.samples == theirs.reader.samples
    assert dataset.reader.class_to_idx == theirs.reader.class_to_idx
    (folder / '0' / 'circle').symlink_to(folder)
    (folder / '1' / '.ipynb_checkpoints').mkdir()
    for name in ('.ipynb_checkpoints/copy.png', '.unfinished-1-0.png', '._0.png'):
        (folder / '1' / name).write_bytes(b'left over')
    (folder / '2' / 'notes.txt').write_text('no image')
    assert list(map(str, walk_images(linked))) == [file for file, _ in theirs.reader.samples]
    (folder / '2' / 'dangling.png').symlink_to('nowhere')
    assert linked / 'digit6' / 'dangling.png' in walk_images(linked)


def test_models_and_devices():
    assert [image_mode(dict(input_size=(n, 8, 8))) for n in (1, 3, 4)] == ['L', 'RGB', 'RGBA']
    model = timm.create_model('dct_resnet50_24s', dct_input='coefficients', device='meta')
    with pytest.raises(ValueError, match='takes 24 channels, expected images of 1, 3 or 4'):
        data_config(model)
    config = dict(input_size=(1, 28, 28), mean=(0.1,), std=(0.3,))
    gray = timm.create_model('resnet18', in_chans=1, pretrained_cfg_overlay=config, device='meta')
    assert [data_config(gray, size)['input_size'] for size in (None, 96)] == [(1, 28, 28), (1, 96, 96)]
    for name, value in (('mean', [float('nan')]), ('std', [float('inf')])):  # as JSON may have them
        gray.pretrained_cfg.update({**config, name: value})
        with pytest.raises(ValueError, match='The mean and std of the model are .*, expected finite numbers'):
            data_config(gray)
    assert usable_device('cpu') == torch.device('cpu')
    for name in ('nothing', 'cuda:99'):
        with pytest.raises(ValueError, match=f'There is no device {name} on this machine'):
            usable_device(name)
