"""Memory attached at identity to networks that have none, and calibrated to a trained trunk."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F

import mlfm_zoo

# one or more of each class, with what makes it special: groups, deep stems, attention, other stages, other norms
NETWORKS = [
    'resnext50_32x4d', 'resnet18d', 'ecaresnet26t', 'seresnet18', 'mnasnet_small', 'mixnet_s', 'efficientnetv2_rw_t',
    'tf_efficientnet_lite0', 'regnetz_005', 'regnetv_040', 'regnety_002', 'convnextv2_atto', 'convnext_atto_ols',
    'convnext_tiny_hnf', 'inception_next_atto',
]


def moved(model):
    """The model with norms whose statistics are not those they start with."""
    torch.manual_seed(0)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 3, 64, 64))
    return model.eval()


@pytest.mark.parametrize('name', NETWORKS)
def test_outputs_and_trunk_stay(name):
    model = moved(timm.create_model(name, num_classes=10))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    image = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        expected = model(image)
        assert mlfm_zoo.supports_memory(model)
        assert mlfm_zoo.attach_memory(model) is model
        actual = model(image)
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert {k.split('.')[0] for k in after.keys() - before.keys()} == {'memory'}
    assert not model.training and not any(m.training for m in model.modules())


@pytest.mark.parametrize('name', ['resnet18', 'convnextv2_atto', 'regnetz_005'])
def test_every_memory_parameter_leaves_the_identity(name):
    """Trained from the second step at the latest; convolution biases that a norm cancels aside."""
    torch.manual_seed(0)
    model = mlfm_zoo.attach_memory(timm.create_model(name, num_classes=5)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(8, 3, 64, 64)), torch.arange(8) % 5).backward()
        without = [n for n, p in model.memory.named_parameters()
                   if not n.endswith('conv.bias') and not (p.grad is not None and p.grad.abs().max() > 0)]
        optimizer.step()
    assert not without


def test_options_and_refusals():
    model = mlfm_zoo.attach_memory(timm.create_model('resnet34'), memory_update='cat', memory_split=True)
    assert len(model.memory.units()) == 8 and model.memory.stem.update == 'cat'
    assert not mlfm_zoo.supports_memory(model) and 'has a memory already' in mlfm_zoo.supports_memory(model).reason
    with pytest.raises(ValueError, match='has a memory already'):
        mlfm_zoo.attach_memory(model)
    support = mlfm_zoo.supports_memory('vit_tiny_patch16_224')
    assert not support and 'VisionTransformer' in support.reason
    assert 'no model named' in mlfm_zoo.supports_memory('resnet_of_mine').reason
    assert mlfm_zoo.supports_memory('resnet50') == (True, '')
    plain = timm.create_model('resnet18')
    with pytest.raises(ValueError, match='memory_update'):
        mlfm_zoo.attach_memory(plain, memory_update='mul')
    with pytest.raises(TypeError):
        mlfm_zoo.attach_memory(plain, memory_gate=1)
    assert type(plain) is timm.models.ResNet and not hasattr(plain, 'memory')


def training_logits(model, images):
    """Logits in training mode, where norms take the statistics of the batch; the model stays as it is."""
    with torch.no_grad():
        return copy.deepcopy(model).train()(images)


def accuracy(model, images, labels, training=False):
    with torch.no_grad():
        logits = training_logits(model, images) if training else model.eval()(images)
    return (logits.argmax(1) == labels).float().mean().item()


def test_calibration_keeps_accuracy_in_both_modes(trained_trunk):
    trunk, images, test_images, labels = trained_trunk
    expected = accuracy(trunk, test_images, labels)
    expected_training = accuracy(trunk, test_images, labels, training=True)
    assert expected > 0.9 and expected_training > 0.9
    model = mlfm_zoo.attach_memory(copy.deepcopy(trunk))
    assert accuracy(model, test_images, labels) == expected
    uncalibrated = training_logits(model, test_images)
    model.train()
    mlfm_zoo.calibrate_memory(model, [(batch, None) for batch in images.split(128)])
    assert model.training
    assert accuracy(model, test_images, labels) == expected
    assert accuracy(model, test_images, labels, training=True) > expected_training - 0.02
    # what calibration brings: in training mode the network answers much more as its trunk does
    trunk_logits, calibrated = training_logits(trunk, test_images), training_logits(model, test_images)
    assert (calibrated - trunk_logits).square().mean() < 0.5 * (uncalibrated - trunk_logits).square().mean()


def test_calibration_refuses(trained_trunk):
    trunk, images, *_ = trained_trunk
    with pytest.raises(ValueError, match='no memory to calibrate'):
        mlfm_zoo.calibrate_memory(trunk, [images[:2]])
    with pytest.raises(ValueError, match='not at identity'):
        mlfm_zoo.calibrate_memory(timm.create_model('test_mlfm_resnet', pretrained=True), [images[:2]])
    with pytest.raises(ValueError, match='loader is empty'):
        mlfm_zoo.calibrate_memory(mlfm_zoo.attach_memory(timm.create_model('test_resnet')), [])


@pytest.mark.slow
def test_every_timm_model_of_the_five_classes():
    names = [name for module in ('resnet', 'efficientnet', 'regnet', 'convnext', 'inception_next')
             for name in timm.list_models(module=module)]
    failed = {}
    for name in names:
        model = timm.create_model(name, device='meta')
        try:
            mlfm_zoo.attach_memory(model).eval()
            model(torch.empty(1, *model.pretrained_cfg['input_size'], device='meta'))
            model.forward_intermediates(torch.empty(1, 3, 160, 160, device='meta'))
        except Exception as error:
            failed[name] = error
    print(f'{len(names) - len(failed)} of {len(names)} work; not: {failed}')
    assert len(names) > 250 and not failed
