"""Reading checkpoint files: damage of any kind is one sentence, and nothing in a file is executed."""

import io
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save

from helpers.authors_form import mobilenetv2, released
from mlfm_zoo.convert import convert_state_dict, read_checkpoint

SMALL = mobilenetv2(0.1)


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Claim:
    """A pickled tensor that claims any sizes and strides on a storage of four values."""

    def __init__(self, size, stride, offset=0):
        self.args = torch.ones(4)._typed_storage(), offset, size, stride, False, OrderedDict()

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.args


def torch_save(content, legacy=False):
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def read(tmp_path, content, name='a.pth'):
    (tmp_path / name).write_bytes(content)
    return read_checkpoint(tmp_path / name)


def refusal(tmp_path, content, name='a.pth'):
    with pytest.raises(ValueError) as error:
        read(tmp_path, content, name)
    message = str(error.value)
    assert message.startswith(str(tmp_path / name)) and '\n' not in message and len(message) < 500, message
    return message.removeprefix(f'{tmp_path / name} ')


def test_forms(tmp_path):
    for name, content in {
        'plain.pth': torch_save(SMALL), 'legacy.pth': torch_save(SMALL, legacy=True),
        'model.pth': torch_save({'model': SMALL, 'global_step': 5}), 'plain.safetensors': save(SMALL),
        'released.pth.tar': torch_save(released(SMALL)),
    }.items():
        weights = read(tmp_path, content, name)
        assert weights.keys() == SMALL.keys() and all(torch.equal(weights[k], v) for k, v in SMALL.items())
        assert convert_state_dict(weights).architecture == 'mlfm_mobilenetv2_010'


def test_nothing_is_executed(tmp_path):
    evil = tmp_path / 'executed'
    pickles = [
        torch_save({'state_dict': SMALL, 'extra': Payload(evil)}),
        torch_save({'state_dict': SMALL, 'extra': Payload(evil)}, legacy=True)]
    for content in (*pickles, pickle.dumps(Payload(evil), protocol=2)):
        assert 'could run code' in refusal(tmp_path, content)
        assert 'damaged' in refusal(tmp_path, content, 'a.safetensors')
        assert not evil.exists()
    for content in pickles:  # they would
        torch.load(io.BytesIO(content), weights_only=False)
        evil.rmdir()


@pytest.mark.parametrize('content', [
    b'', b'hello', b'PK\x03\x04', b'\x89HDF\r\n', bytes(100_000),
    # opcodes that claim gigabytes: a text, bytes, a number, memo indices, a mark nowhere
    *(b'\x80\x02' + code for code in (
        b'X' + struct.pack('<I', 2 ** 32 - 1), b'\x8d' + struct.pack('<Q', 2 ** 62), b'\x8b\xff\xff\xff\xff',
        b'Nr\xff\xff\xff\xff', b't', b'j\xff\xff\xff\xff', b'}(' * 10_000, b'R.')),
])
def test_other_files(content, tmp_path):
    assert 'damaged or no PyTorch checkpoint' in refusal(tmp_path, content, 'a.safetensors')
    assert 'get the file again' in (message := refusal(tmp_path, content)) or 'could run code' in message


@pytest.mark.parametrize('content', [[1, 2], {}, 5, {'state_dict': [1]}, {'model': {}}, SMALL['conv.0.weight']])
def test_no_state_dict(content, tmp_path):
    assert 'holds no state dict' in refusal(tmp_path, torch_save(content))


@pytest.mark.parametrize('tensor, message', [
    (torch.zeros(4, 4).to_sparse(), 'expected dense'), (torch.zeros(4, 4, dtype=torch.int64), 'expected dense'),
    (torch.zeros(4, 4, dtype=torch.complex64), 'expected dense'), (torch.full((4, 4), torch.nan), 'not finite'),
    (torch.zeros(1).expand(10 ** 11), 'all in the file'), (torch.zeros(3, device='meta'), 'all in the file'),
    (Claim((10 ** 6, 10 ** 6), (0, 0)), 'all in the file'), (Claim((10 ** 12,), (1,)), 'damaged'),
    (Claim((4,), (1,), 2 ** 40), 'damaged'), (Claim((-5,), (1,)), 'damaged'),
])
def test_odd_tensors(tensor, message, tmp_path):
    assert message in refusal(tmp_path, torch_save(SMALL | {'conv.0.weight': tensor}))


def test_odd_names(tmp_path):
    for name in ('two\nlines', '', 'x' * 5000, '\x1b[31m'):
        assert 'holds a parameter named' in refusal(tmp_path, torch_save(SMALL | {name: torch.zeros(1)}))


def test_packed_archives(tmp_path):
    """A compressed archive, which may be far larger in memory than on the disk."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(torch_save({'a': torch.zeros(100_000)}))) as old:
        with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as new:
            for info in old.infolist():
                new.writestr(info.filename, old.read(info) * 30)
    assert 'damaged' in refusal(tmp_path, file.getvalue())


def damage(rng, data):
    """Cut a file, or overwrite, drop or repeat a part of it, mostly where its names and sizes are."""
    start = rng.randrange(rng.choice([len(data), min(len(data), 20_000)]))
    end = start + rng.choice([1, 4, 100, 5000])
    return data[:start] + rng.choice([
        b'', rng.randbytes(end - start) + data[end:], data[end:], data[start:end] * rng.choice([1, 50]) + data[start:]])


@pytest.mark.parametrize('seed, count', [(2024, 150), pytest.param(7, 3000, marks=pytest.mark.slow)])
def test_damaged(seed, count, tmp_path):
    """Files that were damaged anywhere are read or refused in one sentence, and nothing else happens."""
    rng = random.Random(seed)
    evil = tmp_path / 'executed'
    whole = [('a.pth', torch_save(SMALL)), ('a.pth', torch_save(SMALL, legacy=True)), ('a.safetensors', save(SMALL)),
             ('a.pth', torch_save({'state_dict': SMALL, 'extra': Payload(evil)}))]
    refused = 0
    for _ in range(count):
        name, content = rng.choice(whole)
        (tmp_path / name).write_bytes(damage(rng, content))
        try:
            convert_state_dict(read_checkpoint(tmp_path / name))
        except ValueError as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 1000
            refused += 1
        assert not evil.exists()
    assert refused > count // 2


def test_a_flipped_bit_is_found(tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save({'state_dict': {'weight': torch.ones(1000)}}, path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(3).numpy().tobytes()) + 400] ^= 1
    path.write_bytes(content)
    assert torch.load(path)['state_dict']['weight'][100] != 1  # torch does not look
    with pytest.raises(ValueError, match='is damaged'):
        read_checkpoint(path)
