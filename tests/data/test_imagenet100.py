"""ImageNet100 folders: prepared from made-up downloads of every shape, with broken files, stopped and resumed."""

import errno
import io
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image
from timm.data import create_dataset

from helpers.disks import full_disk
from mlfm_zoo import imagenet100
from mlfm_zoo.data.imagenet100 import SYNSETS, DataError, main, prepare, verify

COUNTS = {'train': 3, 'val': 2}


def jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    random.seed(seed)
    Image.frombytes('RGB', (16, 16), random.randbytes(768)).save(file, 'JPEG')
    return file.getvalue()


JPEGS = [jpeg(i) for i in range(3)]


def write(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        (folder / name).write_bytes(JPEGS[i % len(JPEGS)])


def names(synset, split):
    return [f'{synset}_{i}.JPEG' for i in range(COUNTS[split])]


def kaggle(root, mixed=False):
    """train.X1 to train.X4 and val.X; shards of classes, or with each class in two of them."""
    for i, synset in enumerate(SYNSETS):
        train = names(synset, 'train')
        write(root / f'train.X{i // 25 + 1}' / synset, train[:2] if mixed else train)
        if mixed:
            write(root / f'train.X{(i // 25 + 1) % 4 + 1}' / synset, train[2:])
        write(root / 'val.X' / synset, names(synset, 'val'))
    (root / 'Labels.json').write_text('{}')
    return root


def imagenet(root, val='val', synsets=(*SYNSETS, 'n02119789', 'n15075141')):
    for synset in synsets:
        write(root / 'train' / synset, names(synset, 'train'))
        write(root / val / synset, names(synset, 'val'))
    return root


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob('*.JPEG'))}


def whole(dest):
    files = tree(dest)
    return sorted(map(str, files)) == sorted(
        f'{split}/{synset}/{name}' for split in COUNTS for synset in SYNSETS for name in names(synset, split)) and (
            set(files.values()) <= set(JPEGS))


@pytest.mark.parametrize('make', [
    kaggle, lambda root: kaggle(root, mixed=True), imagenet, lambda root: imagenet(root, 'validation'),
    lambda root: imagenet(root / 'ILSVRC' / 'Data' / 'CLS-LOC') and root,
    lambda root: kaggle(root / 'archive') and root,
], ids=['shards by class', 'shards mixed', 'ImageNet-1k', 'validation', 'nested ImageNet-1k', 'nested shards'])
@pytest.mark.parametrize('copy', [False, True])
def test_every_shape(make, copy, tmp_path):
    source, dest = make(tmp_path / 'source'), tmp_path / 'dest'
    summary = prepare(source, dest, copy=copy, num_images=COUNTS)
    assert summary == ({'train': 300, 'val': 200}, 500, {})
    assert whole(dest)
    assert all(p.is_symlink() != copy for p in dest.rglob('*.JPEG'))
    assert verify(dest, num_images=COUNTS) == ({'train': 300, 'val': 200}, 0, {})
    assert prepare(source, dest, copy=copy, num_images=COUNTS).made == 0  # all is there
    dataset = create_dataset('', dest, split='validation')
    assert list(dataset.reader.class_to_idx) == list(SYNSETS) and len(dataset) == 200


def test_beside_the_shards(tmp_path):
    """The folder made may be the one that the shards lie in."""
    source = kaggle(tmp_path / 'source')
    for _ in range(2):
        prepare(source, source, num_images=COUNTS)
    assert sum(1 for _ in source.glob('train/*/*.JPEG')) == 300
    prepared = imagenet(tmp_path / 'prepared')
    with pytest.raises(DataError, match='is the set itself'):
        prepare(prepared, prepared, num_images=COUNTS)
    assert not any(p.is_symlink() for p in prepared.rglob('*'))


BROKEN = {
    'empty': (lambda path: path.write_bytes(b''), 'is empty'),
    'truncated': (lambda path: path.write_bytes(JPEGS[0][:-60]), 'is truncated'),
    'text': (lambda path: path.write_text('<html>Too many requests</html>'), 'cannot be decoded as an image'),
    'dangling': (
        lambda path: (path.unlink(), path.symlink_to('nowhere')), 'cannot be read (No such file or directory)'),
    'folder': (lambda path: (path.unlink(), path.mkdir()), 'cannot be read (Is a directory)'),
    'noise': (lambda path: path.write_bytes(bytes(range(256)) * 4), 'cannot be decoded as an image'),
}


@pytest.mark.parametrize('kind', BROKEN)
def test_broken_files(kind, tmp_path, capsys):
    source, dest = kaggle(tmp_path / 'source'), tmp_path / 'dest'
    break_it, what = BROKEN[kind]
    bad = source / 'train.X3' / SYNSETS[60] / f'{SYNSETS[60]}_1.JPEG'
    break_it(bad)
    command = ['prepare', str(source), str(dest), '--num-images', '3', '2']
    assert main(command) == 1
    listed, error = capsys.readouterr().err.splitlines()
    assert listed == f'{bad} {what}' and error.startswith('error: 1 images of') and '--skip-bad' in error
    assert main([*command, '--skip-bad']) == 0
    printed = capsys.readouterr().out
    assert f'{bad} {what}' in printed and '299 train images, 200 val images, 1 left out' in printed
    assert main(['verify', str(dest), '--num-images', '3', '2', '--decode']) == 0
    assert not os.path.lexists(dest / 'train' / SYNSETS[60] / bad.name)


def test_other_images_are_no_fault(tmp_path):
    """A PNG under a JPEG's name and bytes after a JPEG's end, which ImageNet has."""
    source = kaggle(tmp_path / 'source')
    folder = source / 'train.X1' / SYNSETS[0]
    Image.new('L', (4, 4)).save(folder / f'{SYNSETS[0]}_0.JPEG', 'PNG')
    (folder / f'{SYNSETS[0]}_1.JPEG').write_bytes(JPEGS[0] + b'\0\0after the end')
    assert prepare(source, tmp_path / 'dest', num_images=COUNTS).bad == {}


def test_damage_inside_is_found_by_decoding(tmp_path):
    source, dest = kaggle(tmp_path / 'source'), tmp_path / 'dest'
    bad = source / 'val.X' / SYNSETS[7] / f'{SYNSETS[7]}_0.JPEG'
    bad.write_bytes(JPEGS[0][:200] + JPEGS[0][-2:])
    prepare(source, dest, num_images=COUNTS)
    assert verify(dest, num_images=COUNTS).bad == {}
    with pytest.raises(DataError, match=f'{bad.name} .*\n1 images of'):
        verify(dest, decode=True, num_images=COUNTS)


def refusal(function, *args, **kwargs):
    with pytest.raises((DataError, FileNotFoundError)) as error:
        function(*args, **kwargs)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_what_is_not_imagenet100(tmp_path):
    dest = tmp_path / 'dest'
    assert 'no folder at' in refusal(prepare, tmp_path / 'nothing', dest)
    (tmp_path / 'empty').mkdir()
    assert 'has no folders train.X1' in refusal(prepare, tmp_path / 'empty', dest)

    other = [*SYNSETS[:8], *(f'n1{i:07}' for i in range(92))]  # as many in common as with the set of CMC
    message = refusal(prepare, imagenet(tmp_path / 'cmc', synsets=other), dest, num_images=COUNTS)
    assert 'has 8 of the 100' in message and 'another ImageNet-100, such as that of Contrastive' in message
    message = refusal(prepare, imagenet(tmp_path / 'part', synsets=SYNSETS[:99]), dest, num_images=COUNTS)
    assert 'has 99 of the 100 classes in train, n02077923 is missing' in message

    flat = imagenet(tmp_path / 'flat', val='other')
    write(flat / 'val', [f'ILSVRC2012_val_{i:08}.JPEG' for i in range(3)])
    assert 'in a folder for each class' in refusal(prepare, flat, dest, num_images=COUNTS)

    short = imagenet(tmp_path / 'short')
    (short / 'train' / SYNSETS[3] / f'{SYNSETS[3]}_0.JPEG').unlink()
    (short / 'val' / SYNSETS[4] / f'{SYNSETS[4]}_0.JPEG').unlink()
    message = refusal(prepare, short, dest, num_images=COUNTS)
    assert f'train/{SYNSETS[3]} has 2 images (and 1 more such classes), expected 3 in train and 2 in val' in message
    assert 'expected 1,300 in train and 50 in val' in refusal(prepare, short, dest)
    assert not dest.exists()


def test_what_is_in_the_folder_already(tmp_path):
    source, dest = kaggle(tmp_path / 'source'), tmp_path / 'dest'
    prepare(source, dest, num_images=COUNTS)
    (dest / 'train' / 'n99999999').mkdir()
    assert 'holds n99999999, which is no class' in refusal(verify, dest, num_images=COUNTS)
    (dest / 'train' / 'n99999999').rmdir()
    stranger = dest / 'val' / SYNSETS[0] / 'stranger.jpg'
    stranger.write_bytes(JPEGS[0])
    assert f'val/{SYNSETS[0]} has 3 images' in refusal(verify, dest, num_images=COUNTS)
    stranger.unlink()
    moved = source.rename(tmp_path / 'moved')  # the links dangle
    assert 'are broken' in str(pytest.raises(DataError, verify, dest, num_images=COUNTS).value)
    assert prepare(moved, dest, num_images=COUNTS).made == 500
    assert prepare(moved, dest, copy=True, num_images=COUNTS).made == 500 and whole(dest)


@pytest.mark.parametrize('copy', [False, True])
def test_stopped_and_resumed(copy, tmp_path):
    """Killed at an arbitrary moment: no file is half there, and the next call completes the folder."""
    source, dest = kaggle(tmp_path / 'source'), tmp_path / 'dest'
    command = [sys.executable, imagenet100.__file__, 'prepare', source, dest, '--num-images', '3', '2']
    command += ['--copy'] if copy else []
    killed = subprocess.Popen(command)
    while sum(1 for _ in dest.glob('train/*/*.JPEG')) < 20:
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    partial = tree(dest)
    assert set(partial.values()) <= set(JPEGS)
    if len(partial) < 500:
        refusal(verify, dest, num_images=COUNTS)
    (dest / 'train' / SYNSETS[0] / '.left.JPEG.partial').write_bytes(b'half')
    assert prepare(source, dest, copy=copy, num_images=COUNTS).made == 500 - len(partial)
    assert whole(dest) and not list(dest.rglob('*.partial'))


def test_no_space(tmp_path, capsys):
    source, dest = kaggle(tmp_path / 'source'), tmp_path / 'dest'
    with full_disk(100):
        assert main(['prepare', str(source), str(dest), '--copy', '--num-images', '3', '2']) == 1
    assert os.strerror(errno.EFBIG) in capsys.readouterr().err
    assert not list(dest.rglob('*.JPEG'))


def test_label_names():
    descriptions = imagenet100.label_descriptions()
    assert list(descriptions) == sorted(SYNSETS) == list(SYNSETS)
    assert descriptions['n01440764'].startswith('tench')
