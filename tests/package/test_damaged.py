"""Damaged manifests, model folders and checkpoints, made from a seed: each gives a clear error and nothing else."""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
import pickle
import random
import re
import struct
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from helpers.authors_form import mobilenetv2, released, resnet
from mlfm_zoo.cli import main
from mlfm_zoo.hub.loading import CheckpointError, verify_file
from mlfm_zoo.hub.manifest import KINDS, Checkpoint, ManifestError, read_manifest
from helpers.networks import WEIGHTS

ORDINARY = (
    RuntimeError, ValueError, KeyError, TypeError, AttributeError, AssertionError, OSError, SafetensorError)


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Claim:
    """A pickled tensor that claims any sizes and strides on a storage of four values."""

    def __init__(self, size, stride, offset=0):
        self.args = torch.ones(4)._typed_storage(), offset, size, stride, False, OrderedDict()

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.args


# ---- damage that needs to know nothing of the file ----


def truncate(rng, data):
    return data[:rng.randrange(len(data))]


def flip_bits(rng, data, end=None):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 3, 30])):
        data[rng.randrange(end or len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def overwrite(rng, data):
    start, length = rng.randrange(len(data)), rng.choice([1, 4, 100, 5000])
    return data[:start] + rng.randbytes(length) + data[start + length:]


def repeat_part(rng, data):
    start, length = rng.randrange(len(data)), rng.choice([1, 16, 300])
    return data[:start] + data[start:start + length] * rng.choice([2, 50]) + data[start:]


def drop_part(rng, data):
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice([1, 16, 300]):]


def rubbish(rng, data):
    return rng.choice([
        b'', b'\0', b'{}', b'[]', b'null', b'PK\x03\x04', b'\x80\x02.', b'\x89HDF\r\n', b'\xff\xfe', b'\xed\xa0\x80',
        rng.randbytes(rng.choice([1, 8, 9, 1000])), b'\0' * 100_000])


BLIND = (truncate, flip_bits, overwrite, repeat_part, drop_part, rubbish)
PATH_TRICKS = (
    '../evil', '../../../../evil.safetensors', '/evil.safetensors', 'weights/../../evil.safetensors', '..', '.', '',
    '..\\evil.safetensors', 'C:\\evil.safetensors', 'weights/evil\0.safetensors', 'weights/\x1b[2Jevil.safetensors',
    'weights//evil.safetensors', './evil.safetensors', '~/evil.safetensors', 'file:///evil.safetensors', 'a/b/c',
    'weights/evil.safetensors/', 'weights/evil.safetensors\n', 'weights/.safetensors', 'weights/evil.pth', '../..',
    'organisation/..', '-rf/name', 'organisation/name@main', 'weights/\u202eevil.safetensors', '$HOME/evil.safetensors')


def odd_value(rng):
    """A value of a type, a size or a content that no field expects."""
    return rng.choice([
        None, True, False, 0, -1, 3, 2 ** 31, 2 ** 48, 2 ** 63, -2 ** 63, 10 ** 30, 10 ** 400, 1.5, -0.0, 1e308,
        float('nan'), float('inf'), -float('inf'), '', ' ', 'x', '3', 'nan', '\0', 'two\nlines', '\x1b[31m', 'ä€\u2028',
        'x' * 300, 'y' * 200_000, [], [[]], [None], [3, 64], [3, 64, 64], [3, -64, 64], [3, 2 ** 40, 64], ['3', 64, 64],
        [True, 1, 1], [1.5, 2, 2], list(range(5000)), {}, {'a': 1}, {'a': {'b': {'c': []}}}, {'top-1': 101},
        {'top-1': float('nan')}, {'two\nlines': 50}, *PATH_TRICKS])


def nested(depth):
    return functools.reduce(lambda inner, _: [inner], range(depth), [])


# ---- manifests ----

ENTRIES = [
    dict(model='test_mlfm_resnet', tag='digits', kind='embedded', places=['package'], file='weights/a.safetensors',
         sha256='0f' * 32, size=387928, num_params=89522, num_classes=10, input_size=[3, 64, 64], license='apache-2.0',
         origin='trained by hand', measured={'top-1': 99.5}, command='make demo'),
    dict(model='mlfm_resnet18', tag='paper_in100', kind='paper', places=['authors'], num_classes=100,
         input_size=[3, 224, 224], license='apache-2.0', origin='the authors', source_repo='github.com/a/b',
         source_commit='a1' * 20, source_path='a b/c.pth', source_blob='b2' * 20, reported={"authors' log": 62.86},
         recipe='convert it'),
    dict(model='mlfm_regnetx_002', tag='pycls_in1k', kind='warm_start', places=['hub'], num_classes=1000,
         repo='timm/regnetx_002.pycls_in1k', commit='c3' * 20, file='model.safetensors', sha256='d4' * 32, size=10,
         input_size=[3, 224, 224], license='mit', origin='timm'),
]
YAML_TRAPS = (
    '!!python/object/apply:os.mkdir [executed]', '!!python/object/new:os.system ["mkdir executed"]',
    '!!python/name:os.mkdir', '!!python/module:executed', '!executed x', '!!binary "%%%"', '!!binary aGFsbG8=',
    '!!set {a, b}', '!!omap [a: 1]', '!!omap x', '!!pairs [1]', '!!int ""', '!!int x', '!!float ""', '!!bool maybe',
    '!!timestamp never', '!!timestamp 2024-99-99', '2024-99-99', '2024-01-31', '2024-01-31 10:00:00', '!!null 1',
    '!!str', '!!map []', '!!seq {}', '&a [*a]', '&a {a: *a}', '*unknown', '? [a]\n: b', '{[a]: b}', '{{a: b}: c}',
    '{1: 2}', '{null: 1}', '{.nan: 1}', '.nan', '.inf', '-.inf', '0x' + 'f' * 9000, '9' * 9000, '1:' * 4000 + '1',
    '1:' * 300_000 + '1', '0b' + '1' * 30_000, '1e999999', '~', '<<', '{<<: 1}', '{<<: [1]}', '{<<: {a: 1}}', '@', '`',
    '%', '\t', '- -', '---', '...', '"', "'", '"\\ud800"', '"\\0"', '"\\x1b"', '|\n', '>-', '[' * 1000, '[' * 100_000,
    '{a: ' * 100_000, '- ' * 100_000, '? ' * 50_000, '!' * 2000, '&' + 'a' * 2000 + ' b', '\ufeff', 'y' * 20_000)


def dump(document):
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True).encode('utf-8', 'replace')


def laughs(levels, merge):
    """Aliases of aliases that stand for 10 ** levels values."""
    lines = ['a0: &a0 {x: 1}' if merge else 'a0: &a0 [x]']
    for i in range(1, levels):
        aliases = f'[{", ".join([f"*a{i - 1}"] * 10)}]'
        lines.append(f'a{i}: &a{i} {{<<: {aliases}}}' if merge else f'a{i}: &a{i} {aliases}')
    return '\n'.join(lines)


def damaged_manifests(rng, count):
    """Manifests as (name, {file: content})."""
    def entry_with(document, field, value):
        rng.choice(document['checkpoints'])[field] = value

    def odd_field(document):
        entry_with(document, rng.choice([f.name for f in dataclasses.fields(Checkpoint)]), odd_value(rng))

    def path_field(document):
        entry_with(document, rng.choice(['file', 'repo', 'model', 'tag']), rng.choice(PATH_TRICKS))

    def missing_field(document):
        entry = rng.choice(document['checkpoints'])
        del entry[rng.choice(list(entry))]

    def unknown_field(document):
        entry_with(document, rng.choice(['licence', '__class__', '', 5, 1.5, None,
                                         True, ('a', 'b'), 'x' * 5000, 'two\nlines']), 1)

    def odd_entry(document):
        document['checkpoints'][rng.randrange(3)] = odd_value(rng)

    def odd_top(document):
        document[rng.choice(['version', 'checkpoints', 'more', 1])] = odd_value(rng)

    def missing_top(document):
        del document[rng.choice(['version', 'checkpoints'])]

    def duplicate(document):
        document['checkpoints'].append(dict(rng.choice(document['checkpoints'])))

    structural = (odd_field, odd_field, odd_field, path_field, missing_field, unknown_field, odd_entry, odd_top,
                  missing_top, duplicate)

    def trap(data):
        """A trap of YAML in the place of a value."""
        lines = data.decode().splitlines()
        i = rng.choice([i for i, line in enumerate(lines) if ': ' in line])
        lines[i] = f'{lines[i].split(": ")[0]}: {rng.choice(YAML_TRAPS)}'
        return '\n'.join(lines).encode()

    def bomb(data):
        place = rng.choice(['version: *a{0}\ncheckpoints: []', 'version: 2\ncheckpoints: [*a{0}]', '', '*a{0}: 1',
                            'version: 1\ncheckpoints: [{{model: *a{0}, tag: *a{0}}}]'])
        levels = rng.choice([3, 9, 30])
        return f'{laughs(levels, rng.random() < 0.5)}\n{place.format(levels - 1)}'.encode()

    def cyclic(data):
        return rng.choice([
            b'version: 1\ncheckpoints: &a [*a]', b'version: &a [*a]\ncheckpoints: []',
            b'&a {version: 1, checkpoints: *a}',
            b'version: 1\ncheckpoints: [&a {model: *a}]', b'&a {<<: *a, version: 1}', b'&a [*a]', b'&a {*a : 1}',
            b'version: 1\ncheckpoints:\n- &a\n  <<: *a\n  model: x\n  tag: y'])

    def other_encoding(data):
        return rng.choice([data.decode().encode('utf-16'), data.decode().encode('utf-32'), b'\xef\xbb\xbf' + data,
                           data.replace(b'trained', b'tr\xe4ned'), data.replace(b'o', b'\xc0\xaf'), data + b'\0'])

    def insert_text(data):
        start = rng.randrange(len(data))
        return data[:start] + rng.choice(YAML_TRAPS).encode('utf-8', 'replace') + data[start:]

    for i in range(count):
        document = copy.deepcopy(dict(version=2, checkpoints=ENTRIES))
        damage = rng.choice([*structural, *BLIND, trap, trap, trap, bomb, cyclic, other_encoding, insert_text])
        if damage in structural:
            damage(document)
            data = dump(document)
        else:
            data = dump(document)
            data = damage(rng, data) if damage in BLIND else damage(data)
        yield f'manifest {i}, {damage.__name__}', {'manifest.yaml': data}


def follows_schema(c):
    """Whether a checkpoint is one that nothing later has to doubt; written anew, not after the reader."""
    def text(value):
        return isinstance(value, str) and len(value.splitlines()) == 1 and not re.search(r'[\0-\x1f]', value)

    def whole(value):
        return type(value) is int and 0 <= value < 2 ** 48

    texts = ('model', 'tag', 'license', 'origin')
    optional = ('repo', 'commit', 'file', 'sha256', 'source_repo', 'source_commit', 'source_path', 'source_blob',
                'command', 'recipe')
    paths = [c.file or 'a', c.repo or 'a', c.source_path or 'a', c.source_repo or 'a']
    return (
        all(text(getattr(c, name)) for name in texts) and c.kind in KINDS
        and type(c.places) is tuple and {*c.places} <= {'package', 'hub', 'authors'} and type(c.memory) is bool
        and all(getattr(c, name) is None or text(getattr(c, name)) for name in optional)
        and whole(c.num_classes) and all(v is None or whole(v) for v in (c.size, c.num_params, c.source_size))
        and type(c.input_size) is tuple and len(c.input_size) == 3 and all(whole(v) and v > 0 for v in c.input_size)
        and all(text(k) and 0 <= v <= 100 for d in (c.reported, c.measured) for k, v in d.items())
        and not any('..' in p.split('/') or p.startswith(('/', '~')) or '\\' in p or ':' in p for p in paths)
        and (c.file is None or c.file.endswith('.safetensors'))
        and (c.repo is None or c.repo.count('/') == 1)
        and (c.sha256 is None or re.fullmatch('[0-9a-f]{64}', c.sha256) is not None)
        and re.fullmatch('[a-z0-9_]+', c.model) is not None and re.fullmatch('[a-z0-9_]+', c.tag) is not None)


def check_manifest(folder):
    """What became of a manifest: 'accepted' or 'refused'."""
    path = folder / 'manifest.yaml'
    try:
        checkpoints = read_manifest(path).checkpoints
    except ManifestError as error:
        message = str(error)
        assert len(message.splitlines()) == 1 and len(message) < 600 and str(path) in message, message
        return 'refused'
    assert all(key == (c.model, c.tag, c.memory) and follows_schema(c) for key, c in checkpoints.items()), checkpoints
    return 'accepted'


# ---- folders that timm loads ----


def pickled(path):
    """A pickle that makes a folder at `path`, in one of the forms that loaders know."""
    file = io.BytesIO()
    torch.save({'state_dict': load_file(WEIGHTS), 'extra': Payload(str(path))}, file)
    return [pickle.dumps(Payload(str(path)), protocol=2), file.getvalue()]


@functools.lru_cache(maxsize=1)
def good_config():
    with tempfile.TemporaryDirectory() as folder:
        timm.models.save_for_hf(timm.create_model('test_mlfm_resnet', pretrained=True), folder, safe_serialization=True)
        return json.loads(Path(folder, 'config.json').read_text())


def with_header(data, change):
    """A safetensors file whose header was changed by `change`, which gets it as a dict."""
    length, = struct.unpack('<Q', data[:8])
    header = json.loads(data[8:8 + length])
    header = change(header) or header
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + data[8 + length:]


def damaged_folders(rng, count, evil):
    """Model folders as (name, {file: content}); pickles among them make a folder at `evil` if they are executed."""
    weights = load_file(WEIGHTS)
    data = WEIGHTS.read_bytes()
    header_end = 8 + struct.unpack('<Q', data[:8])[0]
    pickles = pickled(evil)

    def flipped_header():
        return {'model.safetensors': flip_bits(rng, data, header_end)}

    def odd_length():
        length = rng.choice([0, 1, 2 ** 31, 2 ** 32, 2 ** 48, 2 ** 63, 2 ** 64 - 1, len(data), 100_000_001, header_end])
        return {'model.safetensors': struct.pack('<Q', length) + data[8:]}

    def odd_header():
        def change(header):
            key = rng.choice(list(header))
            if key == '__metadata__' or rng.random() < 0.2:
                header[key] = odd_value(rng)
            else:
                field = rng.choice(['dtype', 'shape', 'data_offsets'])
                header[key][field] = rng.choice([
                    odd_value(rng), 'F64', 'I64', 'BF16', 'F8_E4M3', 'C64', 'BOOL', [2 ** 62, 4],
                    [0], [10 ** 9, 10 ** 9],
                    [0, 4], [4, 0], [0, 2 ** 40], [2 ** 40, 2 ** 41], [-1, 5]])
            return rng.choice([header, header, header, [header], nested(500), {'x' * 100_000: header}])
        return {'model.safetensors': with_header(data, change)}

    def odd_tensors():
        key = rng.choice(list(weights))
        changed = dict(weights)
        tensor = changed.pop(key)
        new_key = rng.choice([key, key, key, 'module.' + key, '../' + key, '', 'two\nlines', '\0', 'x' * 5000])
        for _ in range(rng.choice([1, 1, 1, 0])):
            changed[new_key] = rng.choice([
                tensor.to(rng.choice([torch.int64, torch.float16, torch.bfloat16, torch.bool, torch.float64,
                                      torch.uint8, torch.float8_e4m3fn])),
                tensor.reshape(-1)[:1].reshape(()).clone(), tensor.reshape(1, *tensor.shape), torch.zeros(0),
                torch.zeros(3, 0, 5), torch.cat([tensor.reshape(-1)] * 2), torch.full(tensor.shape, torch.nan)])
        if rng.random() < 0.1:
            changed = rng.choice([{}, {key: tensor}, changed | {'more.weight': tensor.clone()}])
        return {'model.safetensors': save(changed)}

    def complex_tensor():
        """In the header alone: the oldest safetensors that is admitted cannot write one."""
        key = rng.choice(list(weights))

        def change(header):
            header[key] |= {'dtype': 'C64', 'shape': list(weights[key].shape)}
        pairs = torch.stack([weights[key]] * 2, dim=-1)
        return {'model.safetensors': with_header(save(weights | {key: pairs}), change)}

    def renamed_pickle():
        name = rng.choice(['model.safetensors', 'model.safetensors', 'pytorch_model.bin', 'model.pth', 'other.pth.tar'])
        return {name: rng.choice(pickles)} | ({} if name == 'model.safetensors' else {'model.safetensors': None})

    def no_weights():
        other = rng.choice(['readme', 'x.bin', 'y.safetensors'])
        return {'model.safetensors': None, other: rng.choice([b'', b'x', data])}

    def odd_config():
        config = copy.deepcopy(good_config())
        for _ in range(rng.choice([1, 1, 2])):
            part = rng.choice([config, config['model_args'], config['pretrained_cfg']])
            if isinstance(part, dict) and part:
                part[rng.choice(list(part))] = odd_value(rng)
            if not all(isinstance(config.get(k), dict) for k in ('model_args', 'pretrained_cfg')):
                break
        return {'config.json': json.dumps(config).encode()}

    def odd_model_args():
        config = copy.deepcopy(good_config())
        key = rng.choice([
            'layers', 'channels', 'stem_width', 'stem_type', 'block', 'block_args', 'cardinality', 'base_width',
            'output_stride', 'act_layer', 'norm_layer', 'aa_layer', 'drop_rate', 'drop_path_rate', 'in_chans',
            'num_classes', 'memory', 'memory_update', 'memory_supplement', 'memory_split', 'memory_forget_last',
            'zero_init_last', 'imagenet100_head', 'features_only', 'feature_cls', 'out_indices', 'pretrained_strict',
            'kernel_size', 'pretrained_custom_load', 'pretrained_filter_fn', 'pretrained_cfg_overlay',
            'pretrained_cfg', 'cache_dir', 'checkpoint_path', 'scriptable', 'model_cls', 'trunk_cls', 'variant',
            'memory_args', 'unknown', '__class__'])
        config['model_args'][key] = rng.choice([
            odd_value(rng), 'relu', 'silu', 'os.mkdir', 'batchnorm2d', [1, 1, 2, 1], [2 ** 20] * 4, [2 ** 40] * 4,
            2 ** 24, [0] * 4, {'file': '../../evil', 'url': 'file:///evil'}])
        return {'config.json': json.dumps(config).encode()}

    def trick_config():
        config = copy.deepcopy(good_config())
        part = rng.choice([config, config['pretrained_cfg']])
        part[rng.choice(['architecture', 'file', 'url', 'hf_hub_id', 'hf_hub_filename', 'source', 'state_dict', 'tag',
                         'custom_load', 'classifier', 'first_conv', 'num_classes', 'label_offset'])] = rng.choice([
            *PATH_TRICKS, odd_value(rng), 'resnet18', 'hf-hub:timm/resnet18', 'mlfm_resnet999', 'local-dir:/', 'url',
            'mlfm_resnet18', '__import__', 'hf', True, ['fc', 'conv1'], 2, -2])
        return {'config.json': json.dumps(config).encode()}

    def without_part():
        config = copy.deepcopy(good_config())
        for _ in range(rng.choice([1, 2])):
            part = rng.choice([config, config.get('pretrained_cfg', config)])
            part.pop(rng.choice(list(part)), None)
        return {'config.json': json.dumps(config).encode()}

    def rubbish_config():
        return {'config.json': rng.choice([
            None, b'', b'[]', b'null', b'3', b'{}', b'"x"', b'NaN', b'\xff\xfe', json.dumps(nested(500)).encode(),
            b'{"architecture": NaN}', b'9' * 5000, b'{"a":' * 500, b'{"pretrained_cfg": []}', b'{"pretrained_cfg": {}}',
            b'{"architecture": "test_mlfm_resnet"}', b'{"architecture": "test_mlfm_resnet", "model_args": 5}'])}

    def blind_config():
        return {'config.json': rng.choice(BLIND)(rng, json.dumps(good_config()).encode())}

    def blind_weights():
        return {'model.safetensors': rng.choice(BLIND)(rng, data)}

    kinds = (blind_weights, blind_weights, flipped_header, odd_length, odd_header, odd_tensors, renamed_pickle,
             no_weights, odd_config, odd_config, odd_model_args, odd_model_args, trick_config, without_part,
             rubbish_config, blind_config, complex_tensor)
    for i in range(count):
        damage = rng.choice(kinds)
        files = {'config.json': json.dumps(good_config()).encode(), 'model.safetensors': data} | damage()
        yield f'folder {i}, {damage.__name__}', {k: v for k, v in files.items() if v is not None}


def check_folder(folder, with_command):
    """What became of a model folder: 'loaded' or 'refused'."""
    name = f'local-dir:{folder}'
    try:
        timm.create_model(name, pretrained=True)
    except ORDINARY as error:
        assert not isinstance(error, RecursionError), error  # a RuntimeError all the same
        if with_command:
            command_fails('evaluate', name, str(folder.parent))
        return 'refused'
    return 'loaded'


def command_fails(*args):
    """The exit code of a command is 1 and it writes one line."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        assert main(list(args)) == 1
    message = err.getvalue()
    assert message.startswith('error: ') and message.count('\n') == 1 and len(message) < 1000, message


# ---- checkpoints that the converter reads ----


def torch_save(content, legacy=False):
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def packed(data, factor=1):
    """A torch.save archive that is compressed."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info) * factor)
    return file.getvalue()


def damaged_checkpoints(rng, count, evil):
    """Checkpoints as (name, {file: content}); pickles among them make a folder at `evil` if they are executed."""
    torch.manual_seed(rng.randrange(2 ** 31))
    small, large = mobilenetv2(0.1), resnet((1, 1, 1, 1))
    whole = [torch_save(small), torch_save(released(small)), torch_save(small, legacy=True)]
    whole_large = torch_save({'model': large})
    pickles = [*pickled(evil), torch_save({'state_dict': small, 'extra': Payload(str(evil))}, legacy=True)]

    def odd_tensor(tensor):
        return rng.choice([
            lambda: tensor.to(rng.choice([torch.int64, torch.bool, torch.complex64, torch.uint8, torch.uint16,
                                          torch.float8_e4m3fn, torch.float16, torch.float64])),
            lambda: torch.tensor(1.), lambda: torch.zeros(0), lambda: torch.zeros(3, 0, 5),
            lambda: torch.zeros([1] * 50), lambda: tensor.unsqueeze(0), lambda: tensor.flatten(),
            lambda: torch.full(tensor.shape, torch.inf),
            lambda: tensor.to_sparse(), lambda: tensor.to('meta'), lambda: torch.nn.Parameter(tensor.float()),
            lambda: torch.zeros(1).expand(10 ** 11), lambda: torch.zeros(1).expand(2 ** 62),
            lambda: torch.zeros(1).expand(10 ** 7, 3, 3, 3),
            lambda: torch.zeros(1, 1, 1, 1).expand(2 ** 20, 2 ** 20, 1, 1),
            lambda: Claim((10 ** 12,), (1,)), lambda: Claim((10 ** 6, 10 ** 6), (0, 0)), lambda: Claim((5,), (-1,)),
            lambda: Claim((-5,), (1,)), lambda: Claim((4,), (1,), 2 ** 40), lambda: Claim((2 ** 63 - 1,), (2 ** 62,)),
            lambda: Claim((4,), (1, 1)), lambda: Claim('ab', None), lambda: odd_value(rng)])()

    def odd_weights():
        weights = dict(small)
        for key in rng.sample(list(weights), rng.choice([1, 1, 2, 5])):
            weights[key] = odd_tensor(weights[key])
        wrap = rng.choice([lambda w: w, released, lambda w: {'model': w}, lambda w: {'state_dict': {'state_dict': w}}])
        return 'a.pth', torch_save(wrap(weights))

    def odd_keys():
        weights = dict(small)
        for _ in range(rng.choice([1, 3])):
            value = weights.pop(rng.choice(list(weights)))
            new = rng.choice([
                5, None, ('a', 1), 1.5, b'bytes', '', 'module.', 'two\nlines', '\0', 'features9.9.conv.9.x', 'x' * 5000,
                '../evil', 'features1.0.conv.99.weight', 'wavelet_9.bnx.weight', 'features.99.conv.0.weight',
                'total_ops', 'stage1.block1.conv1.weight', 'features.0.0.weight', 'wavelet_' + '1' * 300, None])
            if new is not None:
                weights[new] = value
        return 'a.pth', torch_save(weights)

    def odd_content():
        cyclic = {}
        cyclic['state_dict'] = cyclic
        content = rng.choice([
            [], {}, None, 5, 'x', small['conv.0.weight'], [small], {'state_dict': [1]}, {'state_dict': None},
            {'model': {}}, {'state_dict': {'a': 1}}, cyclic, nested(200),
            {1: small}, {'state_dict': {'a': Claim((9,), (1,))}},
            OrderedDict(small), {'model': {'conv1.weight': torch.zeros(3)}}, set(), torch.nn.Linear(2, 2)])
        return 'a.pth', torch_save(content, legacy=rng.random() < 0.3)

    def renamed():
        name, content = rng.choice([
            ('a.safetensors', whole[0]), ('a.safetensors', pickles[0]), ('a.safetensors', pickles[1]),
            ('a.pth', save(small)), ('a.pth', save({'a': torch.zeros(1)})), ('a.json', b'{}'), ('a', rng.choice(whole)),
            ('.pth', rng.choice(whole)), ('a.zip', rng.choice(whole)), ('a.pth.tar', save(small))])
        return name, content

    def with_payload():
        return rng.choice(['a.pth', 'a.pth.tar', 'a.bin', 'a.safetensors']), rng.choice(pickles)

    def with_flipped_payload():
        return 'a.pth', rng.choice([truncate, flip_bits])(rng, rng.choice(pickles))

    def archive():
        with zipfile.ZipFile(file := io.BytesIO(), 'w') as new:
            for name in rng.choice([['../evil'], ['/evil', 'x/data.pkl'], ['x/data.pkl', 'x/version'], ['a', 'a/b']]):
                new.writestr(name, rng.choice([b'', b'3', pickles[0]]))
        return 'a.pth', rng.choice([packed(whole[0]), packed(whole[0], 30), file.getvalue()])

    def huge_pickle():
        """Opcodes that claim gigabytes: a text, bytes, a number, memo indices, a mark nowhere."""
        return 'a.pth', b'\x80\x02' + rng.choice([
            b'X' + struct.pack('<I', 2 ** 32 - 1), b'\x8d' + struct.pack('<Q', 2 ** 62),
            b'\x8e' + struct.pack('<Q', 2 ** 63),
            b'\x8b' + struct.pack('<i', 2 ** 31 - 1), b'\x8b' + struct.pack('<i', -1),
            b'Nr' + struct.pack('<I', 2 ** 32 - 1),
            b't', b'((((', b'j\xff\xff\xff\xff', b'cos\nmkdir\n', b'Q', b'}(' * 10_000, b']a', b'R', b'b', b'u',
            b'\x80\xff']) + rng.choice([b'', b'.', b'x' * 100])

    def safetensors_header():
        def change(header):
            header[rng.choice(list(header))] = rng.choice([
                odd_value(rng), dict(dtype='F32', shape=[2 ** 40], data_offsets=[0, 4]),
                dict(dtype='F4', shape=[2], data_offsets=[0, 1])])
        return 'a.safetensors', with_header(save(small), change)

    def blind():
        data, name = rng.choice([(d, 'a.pth') for d in whole] + [(save(small), 'a.safetensors')])
        return name, rng.choice(BLIND)(rng, data)

    def flipped_pickle():
        """Flips in the part of a file that names and sizes are in, not in the numbers."""
        data = whole[2]
        return 'a.pth', flip_bits(rng, data, 20_000)

    def blind_large():
        return 'a.pth', rng.choice(BLIND)(rng, whole_large)

    kinds = [blind, blind, blind, flipped_pickle, flipped_pickle, odd_weights, odd_weights, odd_weights, odd_keys,
             odd_keys, odd_content, renamed, with_payload, with_flipped_payload, archive, huge_pickle,
             safetensors_header]
    for i in range(count):
        damage = blind_large if i % 50 == 49 else rng.choice(kinds)
        name, content = damage()
        yield f'checkpoint {i}, {damage.__name__}', {name: content}


def check_checkpoint(folder):
    """What became of a checkpoint: 'converted' or 'refused'."""
    file, = folder.iterdir()
    output = folder / 'converted'
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        code = main(['convert', str(file), '--output', str(output)])
    message = err.getvalue()
    if code == 0:
        assert sorted(p.name for p in output.iterdir()) == ['config.json', 'model.safetensors']
        for left in output.iterdir():
            left.unlink()
        output.rmdir()
        return 'converted'
    assert code == 1 and message.startswith('error: ') and message.count('\n') == 1 and len(message) < 1500, message
    return 'refused'


# ---- the runs ----


def listing(root):
    return sorted(str(p.relative_to(root)) for p in root.rglob('*'))


def run(cases, check, root):
    """Check each case in a folder three levels deep, with the working directory beside it; count the outcomes.

    Whatever a case writes but its own files is found: the working directory, the home, the folder for temporary files
    and all folders that a few `../` lead to are inside `root`.
    """
    folder = root / 'a' / 'b' / 'target'
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = {}
    empty = listing(root)
    for name, files in cases:
        for file, content in files.items():
            (folder / file).write_bytes(content)
        before = listing(root)
        try:
            outcome = check(folder)
        except BaseException as error:  # an exit is a failure of the case too
            raise AssertionError(f'{name}: {type(error).__name__}: {error}') from error
        assert listing(root) == before, f'{name}: {set(listing(root)) ^ set(before)}'
        assert all((folder / file).read_bytes() == content for file, content in files.items()), name
        for file in files:
            (folder / file).unlink()
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert listing(root) == empty
    return outcomes


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    root = tmp_path / 'sandbox'
    for name in ('work', 'home', 'temporary'):
        (root / name).mkdir(parents=True)
    monkeypatch.chdir(root / 'work')
    monkeypatch.setenv('HOME', str(root / 'home'))
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setattr(tempfile, 'tempdir', str(root / 'temporary'))
    return root


def run_all(root, seed, manifests, folders, checkpoints, commands=10):
    """Run so many cases of each kind, every `commands`th refused folder through the command line too."""
    rng = random.Random(seed)
    good_config()
    evil = root / 'evil'
    turns = itertools.count()

    def check_some(folder):
        return check_folder(folder, next(turns) % commands == 0)

    outcomes = [
        run(damaged_manifests(rng, manifests), check_manifest, root),
        run(damaged_folders(rng, folders, evil), check_some, root),
        run(damaged_checkpoints(rng, checkpoints, evil), check_checkpoint, root)]
    print(outcomes)
    assert [sum(counts.values()) for counts in outcomes] == [manifests, folders, checkpoints]
    assert all(counts['refused'] > 0.6 * sum(counts.values()) for counts in outcomes), outcomes


def test_damaged_sample(sandbox):
    run_all(sandbox, 2024, manifests=250, folders=120, checkpoints=60)


@pytest.mark.slow
def test_ten_thousand_damaged(sandbox):
    run_all(sandbox, 7, manifests=6000, folders=2800, checkpoints=1200)


@pytest.mark.parametrize('field', ['version', 'checkpoints', 'model', 'file', 'size', 'input_size', 'measured'])
def test_yaml_traps(field, tmp_path):
    """Each trap in each place, among them what once crashed the reader or would have kept it busy for hours."""
    text = dump(dict(version=2, checkpoints=ENTRIES)).decode()
    for trap in (*YAML_TRAPS, laughs(30, False), laughs(30, True)):
        head, old, tail = re.split(rf'^(.*\b{field}:).*$', text, maxsplit=1, flags=re.MULTILINE)
        damaged = f'{head}{old} {trap}{tail}'
        (tmp_path / 'manifest.yaml').write_text(damaged, encoding='utf-8')
        check_manifest(tmp_path)


def test_configs_of_huge_networks(tmp_path):
    (tmp_path / 'model.safetensors').write_bytes(WEIGHTS.read_bytes())
    for args in (dict(layers=[10 ** 9] * 4), dict(channels=[60_000] * 4), dict(num_classes=10 ** 9),
                 dict(in_chans=10 ** 8), dict(layers=[10 ** 30, 1, 1, 1]), dict(stem_width=10 ** 400)):
        config = copy.deepcopy(good_config())
        config['model_args'].update(args)
        (tmp_path / 'config.json').write_text(json.dumps(config))
        with pytest.raises(ValueError, match='config.json given for test_mlfm_resnet describes no network') as error:
            timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
        assert '\n' not in str(error.value)
    (tmp_path / 'config.json').write_text('[' * 100_000)  # more than json reads
    command_fails('evaluate', f'local-dir:{tmp_path}', str(tmp_path))


def test_callers_head_may_be_large(tmp_path):
    """What is too large is judged by the config, not by what the caller asks for."""
    (tmp_path / 'model.safetensors').write_bytes(WEIGHTS.read_bytes())
    (tmp_path / 'config.json').write_text(json.dumps(good_config()))
    model = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, num_classes=200_000)
    assert model.fc.weight.shape == (200_000, 40)


def test_callers_argument_is_not_the_configs_fault(tmp_path):
    (tmp_path / 'model.safetensors').write_bytes(WEIGHTS.read_bytes())
    (tmp_path / 'config.json').write_text(json.dumps(good_config()))
    with pytest.raises(ValueError, match='arguments given beside it .*drop_paths.*: correct them'):
        timm.create_model(f'local-dir:{tmp_path}', pretrained=True, drop_paths=0.1)


@pytest.mark.parametrize('tensor', [torch.zeros(1).expand(10 ** 11), torch.zeros(3, device='meta')])
def test_values_that_are_not_there(tensor, tmp_path, capsys):
    torch.save(mobilenetv2(0.1) | {'conv.0.weight': tensor}, tmp_path / 'a.pth')
    assert main(['convert', str(tmp_path / 'a.pth'), '--output', str(tmp_path / 'converted')]) == 1
    assert 'but not that many values' in capsys.readouterr().err


def test_packed_archives_are_refused(tmp_path):
    (tmp_path / 'a.pth').write_bytes(packed(torch_save({'a': torch.zeros(1_000_000)})))
    assert check_checkpoint(tmp_path) == 'refused'


def test_undamaged_is_accepted(sandbox):
    """What the damage starts from is good, so that what is refused is refused for its damage."""
    good = {'config.json': json.dumps(good_config()).encode(), 'model.safetensors': WEIGHTS.read_bytes()}
    manifest = dict(version=2, checkpoints=ENTRIES)
    assert run([('good', {'manifest.yaml': dump(manifest)})], check_manifest, sandbox) == {'accepted': 1}
    assert run([('good', good)], lambda folder: check_folder(folder, False), sandbox) == {'loaded': 1}
    files = [torch_save(released(mobilenetv2(0.1))), torch_save(mobilenetv2(0.1), legacy=True),
             torch_save(resnet((1, 1, 1, 1)))]
    assert run([('good', {'a.pth': file}) for file in files], check_checkpoint, sandbox) == {'converted': 3}


def test_payloads_would_be_noticed(sandbox):
    """The pickles of the other tests do make a folder where they are executed."""
    evil = sandbox / 'evil'
    for data in pickled(evil):
        with contextlib.suppress(Exception):
            torch.load(io.BytesIO(data), weights_only=False)
        with contextlib.suppress(Exception):
            pickle.loads(data)
        assert evil.is_dir()
        evil.rmdir()


def test_any_change_of_a_verified_file_is_noticed(tmp_path):
    rng = random.Random(5)
    data = WEIGHTS.read_bytes()
    checkpoint = Checkpoint(
        'test_mlfm_resnet', 'digits', 'embedded', ('package',), 'apache-2.0', 'made up', 10, (3, 64, 64),
        file='a.safetensors', sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    file = tmp_path / 'a.safetensors'
    file.write_bytes(data)
    for c in (checkpoint, dataclasses.replace(checkpoint, size=None)):
        verify_file(file, c)
        for _ in range(150):
            changed = rng.choice(BLIND)(rng, data)
            if changed != data:
                file.write_bytes(changed)
                with pytest.raises(CheckpointError, match='expected') as error:
                    verify_file(file, c)
                assert len(str(error.value).splitlines()) == 1
        file.write_bytes(data)
