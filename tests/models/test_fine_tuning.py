"""Fine-tuning and other libraries that build on timm: the guide's own code, and torchvision, transformers and smp."""

import json
import re
import runpy
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save
from torch import nn

from digits import load_split, write_digits
from helpers.hub_server import HubServer
from helpers.networks import SMALL, SMALL_GSSDNET, WEIGHTS
from helpers.user import User

ROOT = Path(__file__).parents[2]
EVERY = {**SMALL, **SMALL_GSSDNET}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp('digits'), 320, 120)


@pytest.mark.parametrize('options', [[], ['--in-chans', '1'], ['--in-chans', '4', '--freeze-trunk']])
def test_example(data, options, monkeypatch, capsys):
    script = str(ROOT / 'examples' / 'fine_tune.py')
    monkeypatch.setattr(sys, 'argv', [
        script, str(data), '--model', 'test_mlfm_resnet', '--epochs', '2', '--device', 'cpu', *options])
    runpy.run_path(script, run_name='__main__')
    printed = capsys.readouterr().out
    assert float(re.findall(r'top-1 ([\d.]+) %', printed)[-1]) > 80, printed


def test_layer_decay_reaches_the_steps(data, monkeypatch):
    """With a decay near 0 only the last layer learns."""
    monkeypatch.syspath_prepend(ROOT / 'examples')
    from fine_tune import fine_tune
    before = timm.create_model('test_mlfm_resnet', pretrained=True)
    model, _ = fine_tune(str(data), 'test_mlfm_resnet', epochs=1, layer_decay=1e-6)
    parameters = dict(model.named_parameters())
    moved = {name: (parameters[name] - value).abs().max().item() for name, value in before.named_parameters()}
    assert moved.pop('fc.weight') > 1e-3 and moved.pop('fc.bias') > 1e-4
    assert max(moved.values()) < 1e-6, max(moved, key=moved.get)


def test_example_with_less_than_a_batch(data, monkeypatch):
    script = str(ROOT / 'examples' / 'fine_tune.py')
    monkeypatch.setattr(sys, 'argv', [script, str(data), '--model', 'test_mlfm_resnet', '--batch-size', '321'])
    with pytest.raises(SystemExit, match=r'train has 320 images, fewer than a batch of 321: give more images'):
        runpy.run_path(script, run_name='__main__')


@pytest.mark.slow
def test_example_from_a_warm_start(data, trained_trunk, tmp_path):
    """A trunk that classifies digits, from a Hub: the example calibrates its memory and keeps what it knows."""
    trunk, *_ = trained_trunk
    with HubServer() as server:
        user = User(server, tmp_path)
        server.add_repo('org/trunk', {'model.safetensors': save(trunk.state_dict())})
        entry = dict(model='test_mlfm_resnet', tag='trunk', kind='warm_start', places=['hub'], repo='org/trunk',
                     file='model.safetensors', num_classes=trunk.num_classes, input_size=[3, 64, 64],
                     license='apache-2.0', origin='made by a test')
        user.manifest.write_text(json.dumps({'version': 2, 'checkpoints': [entry]}))
        before, after, identity = user.code(f'''
import contextlib, io, sys
sys.path.insert(0, {str(ROOT / 'examples')!r})
from fine_tune import fine_tune
with contextlib.redirect_stdout(io.StringIO()):
    before = fine_tune({str(data)!r}, 'test_mlfm_resnet.trunk', epochs=1, lr=0)
    after = fine_tune({str(data)!r}, 'test_mlfm_resnet.trunk', epochs=1, lr=1e-4)
print(json.dumps([before[1], after[1], after[0].memory.units()[0].is_identity()]))
''')
    assert before > 85 and after > 85 and not identity


@pytest.mark.parametrize('name', EVERY)
def test_torchvision_detector(name):
    """features_only in a RetinaNet's pyramid: a training step and a detection."""
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import FeaturePyramidNetwork

    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = timm.create_model(name, features_only=True, out_indices=(-3, -2, -1), **EVERY[name])
            self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), 16)
            self.out_channels = 16

        def forward(self, x):
            return self.fpn(OrderedDict((str(i), f) for i, f in enumerate(self.body(x))))

    torch.manual_seed(0)
    anchors = AnchorGenerator(((16,), (32,), (64,)), ((1.0,),) * 3)
    model = RetinaNet(Backbone(), num_classes=3, anchor_generator=anchors, min_size=96, max_size=128)
    images = [torch.rand(3, 96, 128), torch.rand(3, 96, 96)]
    target = dict(boxes=torch.tensor([[10.0, 10.0, 60.0, 60.0]]), labels=torch.tensor([1]))
    losses = model(images, [target, target])
    sum(losses.values()).backward()
    assert all(p.grad is not None for n, p in model.backbone.body.named_parameters()
               if ('memory' in n or 'gssdnet' in name) and 'conv.bias' not in n)
    with torch.inference_mode():
        assert model.eval()(images)[0]['boxes'].shape[1] == 4


@pytest.mark.parametrize('name', EVERY)
def test_segmentation_models(name):
    """A U-Net of segmentation_models_pytorch, which names timm's networks tu-NAME."""
    import segmentation_models_pytorch as smp
    channels = timm.create_model(name, features_only=True, **EVERY[name]).feature_info.channels()
    depth = 5
    torch.manual_seed(0)
    model = smp.Unet(f'tu-{name}', encoder_weights=None, encoder_depth=depth, in_channels=4, classes=2, **EVERY[name])
    assert model.encoder.out_channels[-1] == channels[-1]
    masks = model(torch.randn(2, 4, 64, 96))
    assert masks.shape == (2, 2, 64, 96)
    masks.mean().backward()
    assert any(('.memory.' in n or 'gssdnet' in name) and p.grad is not None and p.grad.any()
               for n, p in model.encoder.named_parameters())


def test_transformers(tmp_path):
    """A published repository in transformers: its wrapper, saving and loading again, and the pipeline's answers."""
    with HubServer() as server:
        user = User(server, tmp_path)
        result = user.publish('test_mlfm_resnet.mine', WEIGHTS, '--origin', 'a test')
        assert result.returncode == 0, result.stderr
        _, test = load_split()
        test.images[0].save(tmp_path / 'digit.png')
        logits, answers, again, label = user.code('''
from PIL import Image
from safetensors.torch import save
from transformers import AutoImageProcessor, TimmWrapperForImageClassification, pipeline
model = TimmWrapperForImageClassification.from_pretrained('org/test_mlfm_resnet.mine').eval()
processor = AutoImageProcessor.from_pretrained('org/test_mlfm_resnet.mine')
image = Image.open('digit.png').convert('RGB')
with torch.inference_mode():
    logits = model(**processor(image, return_tensors='pt')).logits
model.save_pretrained('saved'); processor.save_pretrained('saved')
again = TimmWrapperForImageClassification.from_pretrained('saved').eval()
with torch.inference_mode():
    same = torch.equal(again(**processor(image, return_tensors='pt')).logits, logits)
answers = pipeline('image-classification', model='org/test_mlfm_resnet.mine')(image)
print(json.dumps([logits.tolist(), [a['label'] for a in answers], same, model.config.id2label['0']
                  if '0' in model.config.id2label else model.config.id2label[0]]))
''')
    model = timm.create_model('test_mlfm_resnet', pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.inference_mode():
        expected = model(transform(Image.open(tmp_path / 'digit.png').convert('RGB')).unsqueeze(0))
    torch.testing.assert_close(torch.tensor(logits), expected, rtol=1e-3, atol=1e-3)
    assert again and label == '0' and answers[0] == str(int(test.labels[0]))
