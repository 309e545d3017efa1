"""ImageNet100 as the authors use it: the 100 classes of Kaggle's ambityga/imagenet100.

It is not the ImageNet-100 of Contrastive Multiview Coding, with which it shares 8 classes.

`prepare` makes a folder for timm's ImageFolder, `train/<wnid>` and `val/<wnid>`, with links to a downloaded set.
`mlfm-zoo imagenet100` runs this file as a separate program without torch and timm, to need little memory for 135,000
files.
"""

import argparse
import functools
import json
import os
import re
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

if not __package__:  # started as a program: this folder is then a package of its own, see PEP 366
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = 'data'

from .images import UnreadableImage, open_image

__all__ = ['NUM_IMAGES', 'SYNSETS', 'DataError', 'Summary', 'label_descriptions', 'prepare', 'verify']

# WordNet ids in sorted order, which is the order of the networks' outputs.
SYNSETS = (
    'n01440764', 'n01443537', 'n01484850', 'n01491361', 'n01494475', 'n01496331', 'n01498041', 'n01514668',
    'n01514859', 'n01531178', 'n01537544', 'n01560419', 'n01582220', 'n01592084', 'n01601694', 'n01608432',
    'n01614925', 'n01622779', 'n01630670', 'n01632458', 'n01632777', 'n01644900', 'n01664065', 'n01665541',
    'n01667114', 'n01667778', 'n01675722', 'n01677366', 'n01685808', 'n01687978', 'n01693334', 'n01695060',
    'n01698640', 'n01728572', 'n01729322', 'n01729977', 'n01734418', 'n01735189', 'n01739381', 'n01740131',
    'n01742172', 'n01749939', 'n01751748', 'n01753488', 'n01755581', 'n01756291', 'n01770081', 'n01770393',
    'n01773157', 'n01773549', 'n01773797', 'n01774384', 'n01774750', 'n01775062', 'n01776313', 'n01795545',
    'n01796340', 'n01798484', 'n01806143', 'n01818515', 'n01819313', 'n01820546', 'n01824575', 'n01828970',
    'n01829413', 'n01833805', 'n01843383', 'n01847000', 'n01855672', 'n01860187', 'n01877812', 'n01883070',
    'n01910747', 'n01914609', 'n01924916', 'n01930112', 'n01943899', 'n01944390', 'n01950731', 'n01955084',
    'n01968897', 'n01978287', 'n01978455', 'n01984695', 'n01985128', 'n01986214', 'n02002556', 'n02006656',
    'n02007558', 'n02011460', 'n02012849', 'n02013706', 'n02018207', 'n02018795', 'n02027492', 'n02028035',
    'n02037110', 'n02051845', 'n02058221', 'n02077923',
)

# Images a class.
NUM_IMAGES = {'train': 1300, 'val': 50}

# Names of the folders of each split: whole, or in the shards that Kaggle serves.
SPLIT_NAMES = {'train': r'train(\.X\d+)?', 'val': r'(val|validation)(\.X\d*)?'}
EXTENSIONS = ('.jpeg', '.jpg', '.png')
PARTIAL = '.partial'
MARK = 'imagenet100.json'

Classes = Dict[Tuple[str, str], Dict[str, Path]]  # files by name, by split and class


class DataError(ValueError):
    """A folder is not ImageNet100, or not all of it."""


class Summary(NamedTuple):
    """What was prepared or found.

    Attributes:
        images: Images of each split.
        made: Files that this call made; the others were there.
        bad: Broken images by path, and what is wrong with each.
    """
    images: Dict[str, int]
    made: int
    bad: Dict[str, str]


def label_descriptions() -> Dict[str, str]:
    """Describe the classes in words.

    Returns:
        Descriptions by WordNet id, in the order of the networks' outputs.

    Examples:
        >>> label_descriptions()['n01443537']
        'goldfish, Carassius auratus'
    """
    from timm.data import ImageNetInfo  # here, since preparing needs no timm

    info = ImageNetInfo('imagenet-1k')
    return {synset: info.label_name_to_description(synset) for synset in SYNSETS}


def prepare(
        source: Union[str, Path],
        dest: Union[str, Path],
        copy: bool = False,
        skip_bad: bool = False,
        num_images: Optional[Dict[str, int]] = None,
        progress: bool = False,
) -> Summary:
    """Make `dest/train/<wnid>` and `dest/val/<wnid>` from a downloaded set.

    Existing files are kept, so an interrupted call resumes. This finds empty and truncated files and files that are not
    images; only `verify` with `decode` finds damage inside an image.

    Args:
        source: The folder of Kaggle's set (train.X1 to train.X4 and val.X), or one with train/<wnid> and val/<wnid>,
            such as ImageNet-1k. They may lie up to three folders deep in it.
        dest: Folder to make or to complete.
        copy: Whether to copy the images instead of linking to them.
        skip_bad: Whether to leave broken images out and continue.
        num_images: Images that each class must have, by split; `NUM_IMAGES` if None.
        progress: Whether to print the progress.

    Returns:
        What was made.

    Raises:
        FileNotFoundError: `source` is not a folder.
        DataError: It does not hold the 100 classes with all their images, or images are broken.
        OSError: A file cannot be made.
    """
    source, dest, num_images = Path(source).resolve(), Path(dest).resolve(), num_images or NUM_IMAGES
    if not source.is_dir():
        raise FileNotFoundError(f'There is no folder at {source}: give the one that the set was unpacked into.')
    splits = _find_splits(source, dest)
    for split, folders in splits.items():
        if dest / split in folders:  # links would replace what they lead to
            raise DataError(f'{dest} is the set itself: name another folder for what is made of it.')
    classes = _list_classes(source, splits, num_images)
    (dest / MARK).unlink(missing_ok=True)
    images, made = dict.fromkeys(NUM_IMAGES, 0), 0
    bad: Dict[str, str] = {}
    left_out: Dict[str, str] = {}
    for (split, synset), files in _each_class(classes, progress):
        for name, path in list(files.items()):
            if what := _fault(path):
                bad[str(path)] = left_out[f'{split}/{synset}/{name}'] = what
                del files[name]
        made += _make_class(dest / split / synset, files, copy)
        images[split] += len(files)
    if bad and not skip_bad:
        raise _broken(source, bad)
    (dest / MARK).write_text(json.dumps({'source': str(source), 'images': images, 'left_out': left_out}, indent=2))
    return Summary(images, made, bad)


def verify(
        folder: Union[str, Path],
        decode: bool = False,
        num_images: Optional[Dict[str, int]] = None,
        progress: bool = False,
) -> Summary:
    """Check that a prepared folder has all 100 classes and all images, each whole.

    Args:
        folder: A folder that `prepare` made, or one of the same form.
        decode: Whether to decode every image, which takes minutes and finds damage inside them.
        num_images: Images that each class must have, by split; `NUM_IMAGES` if None. Broken images that `prepare` left
            out count too.
        progress: Whether to print the progress.

    Returns:
        What was found.

    Raises:
        FileNotFoundError: There is no such folder.
        DataError: It is not ImageNet100, or not all of it.
    """
    folder, num_images = Path(folder).resolve(), num_images or NUM_IMAGES
    if not folder.is_dir():
        raise FileNotFoundError(f'There is no folder at {folder}: give one that prepare has made.')
    mark = folder / MARK
    left_out = [name.rpartition('/')[0] for name in json.loads(mark.read_text())['left_out']] if mark.exists() else []
    classes = _list_classes(folder, {split: [folder / split] for split in NUM_IMAGES}, num_images, left_out)
    for split in NUM_IMAGES:
        others = [f.name for f in (folder / split).iterdir() if f.is_dir() and f.name not in SYNSETS]
        if others:  # readers of the folder would count it as a class
            raise DataError(f'{folder / split} holds {min(others)}, which is no class of ImageNet100: remove it.')
    images, bad = dict.fromkeys(NUM_IMAGES, 0), {}
    with ProcessPoolExecutor() as pool:
        for (split, _), files in _each_class(classes, progress):
            decoded = pool.map(functools.partial(_fault, decode=True), files.values(), chunksize=32) if decode else None
            faults = zip(files.values(), decoded or map(_fault, files.values()))
            bad.update({str(path): what for path, what in faults if what})
            images[split] += len(files)
    if bad:
        raise _broken(folder, bad)
    return Summary(images, 0, bad)


def _each_class(classes: Classes, progress: bool) -> Iterator[Tuple[Tuple[str, str], Dict[str, Path]]]:
    for i, (split, synset) in enumerate(classes, start=1):
        if progress:
            print(f'\r{split}/{synset}: class {i} of {len(classes)}', end='\n' * (i == len(classes)), flush=True)
        yield (split, synset), classes[split, synset]


def _find_splits(source: Path, dest: Path) -> Dict[str, List[Path]]:
    """Find the folders that hold the classes of each split, nearest to the top."""
    level = [source]
    for _ in range(4):
        for folder in level:
            inside = sorted(f for f in folder.iterdir() if f.is_dir())
            found = {
                split: [f for f in inside if re.fullmatch(pattern, f.name)] for split, pattern in SPLIT_NAMES.items()}
            if all(found.values()):  # what was made beside the shards is not part of them
                return {split: [f for f in folders if '.X' in f.name] or folders for split, folders in found.items()}
        level = [f for folder in level for f in folder.iterdir()
                 if f.is_dir() and not re.fullmatch(r'n\d{8}', f.name) and f != dest]
    raise DataError(
        f'{source} has no folders train.X1, train.X2 ... and val.X, and none called train and val: give the folder '
        'that ambityga/imagenet100 or ImageNet-1k was unpacked into.')


def _list_classes(
        source: Path,
        splits: Dict[str, List[Path]],
        num_images: Dict[str, int],
        left_out: Sequence[str] = (),
) -> Classes:
    """List the files of each class by name; raise if classes or files are missing."""
    files: Classes = {}
    for split, folders in splits.items():
        names = {f.name for folder in folders if folder.is_dir() for f in folder.iterdir() if f.is_dir()}
        classes = {name for name in names if re.fullmatch(r'n\d{8}', name)}
        common = classes & set(SYNSETS)
        where = f'{source} has {len(common)} of the 100 classes in {", ".join(folder.name for folder in folders)}'
        if len(common) < 50 <= len(classes) <= 200:
            raise DataError(
                f'{where}: it is another ImageNet-100, such as that of Contrastive Multiview Coding, which shares 8 '
                'classes with this one; get ambityga/imagenet100 from Kaggle, or give an ImageNet-1k folder.')
        if len(common) < len(SYNSETS):
            raise DataError(
                f'{where}, {min(set(SYNSETS) - common)} is missing: unpack all of the set, in a folder for each class '
                'that is named by its WordNet id.')
        for synset in SYNSETS:
            paths = [path for folder in folders for path in sorted((folder / synset).glob('*'))]
            files[split, synset] = {path.name: path for path in paths if path.name.lower().endswith(EXTENSIONS)}
    wrong = [key for key in files if len(files[key]) + left_out.count('/'.join(key)) != num_images[key[0]]]
    if wrong:
        more = f' (and {len(wrong) - 1} more such classes)' if len(wrong) > 1 else ''
        expected = ' and '.join(f'{n:,} in {split}' for split, n in num_images.items())
        raise DataError(
            f'{source}: {"/".join(wrong[0])} has {len(files[wrong[0]])} images{more}, expected {expected}: unpack all '
            'of the set.')
    return files


def _fault(path: Path, decode: bool = False) -> Optional[str]:
    """What is wrong with an image, by its ends or by decoding it; None if nothing."""
    try:
        with open(path, 'rb', buffering=0) as f:
            start, size = f.read(2), f.seek(0, os.SEEK_END)
            f.seek(max(0, size - 2))
            is_whole = (start, f.read(2)) == (b'\xff\xd8', b'\xff\xd9')  # the marks that a JPEG starts and ends with
        if not size:
            return 'is empty'
        if decode or not is_whole:  # or of another format, or with bytes after the end
            open_image(path, mode=None)
    except OSError as error:
        return f'cannot be read ({error.strerror})'
    except UnreadableImage as error:
        return 'is truncated' if 'truncated' in str(error.__cause__) else 'cannot be decoded as an image'
    return None


def _make_class(folder: Path, files: Dict[str, Path], copy: bool) -> int:
    """Complete the folder of one class; the number of files made."""
    folder.mkdir(parents=True, exist_ok=True)
    there = {entry.name: entry for entry in os.scandir(folder)}
    for name in there.keys() - files.keys():
        if name.endswith(PARTIAL) or there[name].is_symlink():  # of a call that was stopped, or of another source
            os.unlink(there[name].path)
    made = 0
    for name, path in files.items():
        target = folder / name
        if name in there:
            if there[name].is_symlink():
                if not copy and os.readlink(target) == str(path):
                    continue
            elif there[name].stat().st_size == path.stat().st_size:
                continue
        unfinished = folder / f'.{name}{PARTIAL}'
        if copy:
            shutil.copyfile(path, unfinished)
        else:
            os.symlink(path, unfinished)
        os.replace(unfinished, target)
        made += 1
    return made


def _broken(source: Path, bad: Dict[str, str]) -> DataError:
    return DataError(
        f'{_listed(bad)}\n{len(bad)} images of {source} are broken: put whole ones in their place, or prepare the set '
        'without them with --skip-bad.')


def _listed(bad: Dict[str, str]) -> str:
    return '\n'.join(f'{path} {what}' for path, what in bad.items())


def main(argv: Optional[List[str]] = None) -> int:
    """Run `prepare` or `verify`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog='mlfm-zoo imagenet100', description='Prepare ImageNet100 for training, and check it.')
    commands = parser.add_subparsers(metavar='COMMAND', dest='command', required=True)
    command = commands.add_parser(
        'prepare', help='make train/<wnid> and val/<wnid> of a downloaded set',
        description="Make DEST/train/<wnid> and DEST/val/<wnid> of Kaggle's ambityga/imagenet100 (train.X1 to train.X4 "
        'and val.X) or of an ImageNet-1k folder. A call that was stopped resumes.')
    command.add_argument('source', help='folder that the set was unpacked into')
    command.add_argument('dest', help='folder to make')
    command.add_argument('--copy', action='store_true', help='copy the images instead of linking to them')
    command.add_argument('--skip-bad', action='store_true', help='leave broken images out and continue')
    check = commands.add_parser(
        'verify', help='check a prepared folder', description='Check a prepared folder: classes, images, whole files.')
    check.add_argument('dest', metavar='folder', help='folder that prepare made')
    check.add_argument('--decode', action='store_true', help='decode every image too, which takes minutes')
    for each in (command, check):
        each.add_argument(
            '--num-images', nargs=2, type=int, metavar=('TRAIN', 'VAL'), default=list(NUM_IMAGES.values()),
            help='images that each class must have (default: 1300 50)')
    args = parser.parse_args(argv)
    num_images, progress = dict(zip(NUM_IMAGES, args.num_images)), sys.stdout.isatty()
    try:
        if args.command == 'prepare':
            summary = prepare(args.source, args.dest, args.copy, args.skip_bad, num_images, progress)
        else:
            summary = verify(args.dest, args.decode, num_images, progress)
    except (DataError, OSError) as error:
        *listed, message = str(error).splitlines()
        print('\n'.join([*listed, f'error: {message}']), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('error: interrupted; the same command resumes', file=sys.stderr)
        return 130
    if summary.bad:
        print(_listed(summary.bad))
    counts = ', '.join(f'{n:,} {split} images' for split, n in summary.images.items())
    print(f'{Path(args.dest)}: {len(SYNSETS)} classes, {counts}, {len(summary.bad)} left out as broken')
    return 0


if __name__ == '__main__':
    sys.exit(main())
