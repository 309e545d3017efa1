"""The command `export`: what it prints, where weights come from, and what it refuses."""

import re
import sys

import pytest
import timm
import torch
from PIL import Image

from digits import write_digits
from helpers.networks import lived_in
from mlfm_zoo._timm import save_model
from mlfm_zoo.workflow.evaluate import evaluate
from mlfm_zoo_cli import main


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Digits, images that are none, and weights of a network with seven classes, as train.py and as timm save them."""
    root = tmp_path_factory.mktemp('export')
    write_digits(root / 'digits', 90, 60)
    (root / 'empty').mkdir()
    for name in ('one', 'broken'):
        (root / name).mkdir()
    Image.new('RGB', (80, 80)).save(root / 'one' / 'a.png')
    (root / 'broken' / 'a.png').write_text('no image')
    torch.manual_seed(0)
    model = lived_in(timm.create_model('test_mlfm_resnet', num_classes=7))
    torch.save(dict(state_dict=model.state_dict(), epoch=3), root / 'model_best.pth.tar')
    (root / 'saved').mkdir()
    save_model(model, root / 'saved')
    return root


@pytest.fixture
def words(folder, tmp_path):
    """The arguments of `export` in a line, with %s for the folder of inputs, and %o for that of outputs."""
    return lambda line: ['export', *line.replace('%s', str(folder)).replace('%o', str(tmp_path)).split()]


def test_int8_and_its_accuracy(folder, words, run):
    said = run(*words('test_mlfm_resnet --format onnx --output %o/model.onnx --int8 %s/digits/train --evaluate '
                      '%s/digits/val --batch-size 8'))
    assert 'test_mlfm_resnet on images (8, 3, 64, 64), 0.3 MiB' in said and 'mean (0.5, 0.5, 0.5)' in said
    assert re.search(r'on random images \(8\) and photographs \(10\): logits differ by \d\.\d% of their norm', said)
    expected = evaluate(timm.create_model('test_mlfm_resnet', pretrained=True), folder / 'digits' / 'val')
    assert f'top-1 of the network: {expected.top1} of 60' in said
    assert int(re.search(r'top-1 of the file: (\d+) of 60', said)[1]) >= expected.top1 - 1


@pytest.mark.parametrize('source', ['test_mlfm_resnet --checkpoint %s/model_best.pth.tar', 'local-dir:%s/saved'])
def test_weights_of_ones_own(source, folder, tmp_path, words, run):
    said = run(*words(f'{source} --format torchscript --output %o/model.pt --fuse --images %s/digits/val'))
    assert 'and photographs (32): logits differ by at most ' in said
    model = timm.create_model(f'local-dir:{folder}/saved', pretrained=True).eval()
    image = torch.randn(3, 3, 70, 64)
    with torch.inference_mode():
        torch.testing.assert_close(torch.jit.load(tmp_path / 'model.pt')(image), model(image), rtol=1e-4, atol=1e-5)


def test_random_weights_of_another_size(tmp_path, words, run):
    said = run(*words('test_resnet --no-pretrained --num-classes 3 --img-size 48 --format torchscript --output '
                      '%o/model.pt'))
    assert '(1, 3, 48, 48)' in said and 'no photographs, which --images FOLDER gives' in said
    assert torch.jit.load(tmp_path / 'model.pt')(torch.zeros(1, 3, 48, 48)).shape == (1, 3)


SCRIPT = '--format torchscript --output %o/model.pt'


ONNX = '--format onnx --output %o/model.onnx'


@pytest.mark.parametrize('line, said', [
    (f'mlfm_nothing {SCRIPT}', 'knows no model named mlfm_nothing'),
    (f'mlfm_resnet10 {SCRIPT}', 'weights'),
    ('test_mlfm_resnet --format onnx --output %o/model.pt', 'ends with .onnx'),
    ('test_mlfm_resnet --format onnx --output %o/nothing/model.onnx', 'in an existing folder'),
    (f'test_mlfm_resnet {SCRIPT} --int8 %s/digits/train', 'torchscript has no int8'),
    (f'test_mlfm_resnet {ONNX} --int8 %s/empty', 'holds no images'),
    (f'test_mlfm_resnet {ONNX} --int8 %s/one', 'holds one image'),
    (f'test_mlfm_resnet {SCRIPT} --images %s/broken', 'cannot be decoded'),
    (f'test_mlfm_resnet {SCRIPT} --evaluate %s/one', 'classes'),
    (f'test_mlfm_resnet {SCRIPT} --checkpoint %s/nothing.pth', 'no checkpoint at'),
    (f'mlfm_resnet18 {SCRIPT} --checkpoint %s/model_best.pth.tar', 'do not fit mlfm_resnet18'),
    (f'test_mlfm_resnet {SCRIPT} --model-kwargs nothing=1', 'nothing'),
    (f'test_mlfm_resnet {SCRIPT} --model-kwargs features_only=True', 'leave features_only out'),
    (f'test_vit --no-pretrained {SCRIPT} --img-size 50', 'does not take images of 50 x 50'),
    (f'test_vit --no-pretrained {SCRIPT} --dynamic', 'do not make it dynamic'),
    (f'test_mlfm_resnet {SCRIPT} --img-size 4', 'does not take images of 4 x 4'),
])
def test_what_is_refused(line, said, tmp_path, words, fail):
    """One sentence that names the fault, and no file."""
    assert said in fail(*words(line)) and not list(tmp_path.iterdir())


@pytest.mark.parametrize('form, file, library', [
    ('onnx', 'model.onnx', 'onnxruntime'), ('openvino', 'model.xml', 'openvino'), ('openvino', 'model.xml', 'nncf')])
def test_without_the_extra(form, file, library, words, fail, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    assert fail(*words(f'test_mlfm_resnet --format {form} --output %o/{file} --int8 %s/digits/train')) == (
        f"error: Exporting to {form} needs {library}, which is not installed: pip install 'mlfm-zoo[export]'.\n")


@pytest.mark.parametrize('options', [
    '--dynamic --dynamic-batch', '--dynamic --batch-size 2', '--no-pretrained --checkpoint %s/model_best.pth.tar'])
def test_options_that_exclude_each_other(options, words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words(f'test_mlfm_resnet {SCRIPT} {options}'))
    assert stop.value.code == 2 and 'not allowed with' in capsys.readouterr().err
