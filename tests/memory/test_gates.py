"""Fused memory: the same outputs, in every form that a deployed network takes, and no checkpoint."""

import copy
import pickle

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.utils.prune as prune
from safetensors.torch import load_file
from timm.models import reparameterize_model
from torch.nn.utils import parametrizations

from helpers.networks import SMALL, assert_near, assert_nothing_overwritten, lived_in
from helpers.reference import REFERENCE, load_fill, needs_reference
from mlfm_zoo import calibrate_memory
from mlfm_zoo.memory import LowFrequencyMemoryUnit
from mlfm_zoo.workflow.convert import convert_checkpoint

small = pytest.mark.parametrize('name', SMALL)


def create(name, **kwargs):
    torch.manual_seed(0)
    return lived_in(timm.create_model(name, **SMALL[name], **kwargs))


@small
@pytest.mark.parametrize('size, channels_last', [((1, 65, 97), False), ((9, 96, 64), True)])
def test_same_outputs(name, size, channels_last):
    """To 1e-5 of the largest value: logits and features, without gradients, in place, and with."""
    model = create(name)
    fused = reparameterize_model(model)
    assert not any(unit.is_fused() for unit in model.memory.units())
    assert all(unit.is_fused() for unit in fused.memory.units())
    image = torch.randn(size[0], 3, *size[1:])
    if channels_last:
        image = image.to(memory_format=torch.channels_last)
        model, fused = (m.to(memory_format=torch.channels_last) for m in (model, fused))
    given = image.clone()
    assert_near(fused(image), model(image))
    with torch.no_grad():
        assert_near(fused(image), model(image))
        expected = model.forward_intermediates(image, intermediates_only=True)
        for actual, feature in zip(fused.forward_intermediates(image, intermediates_only=True), expected):
            assert_near(actual, feature)
        for same in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
            assert_near(same(image), model(image))
    assert torch.equal(image, given)


@pytest.mark.parametrize('update', ['add', 'cat'])
@pytest.mark.parametrize('forget', [0, 1, 2])
@pytest.mark.parametrize('supplement', [True, False])
def test_unit(update, forget, supplement):
    torch.manual_seed(0)
    unit = LowFrequencyMemoryUnit(8, 5, level=1, update=update, supplement=supplement, forget=forget)
    for parameter in unit.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    bands = [torch.randn(3, 3, 18, 14), torch.randn(3, 3, 9, 7)]
    x, memory = torch.randn(3, 8, 9, 7), torch.randn(3, 5, 9, 7)
    for _ in range(3):
        unit.train()(x, memory, bands)
    unit.eval()
    fused = copy.deepcopy(unit).fuse()
    assert fused.fuse() is fused
    with torch.no_grad():
        for actual, expected in zip(fused(x.clone(), memory, bands), unit(x, memory, bands)):
            assert_near(actual, expected)


@pytest.mark.parametrize('device, batch', [('cpu', 0), ('meta', 2)])
def test_empty_batch_and_meta_device(device, batch):
    with torch.device(device), torch.no_grad():
        model = timm.create_model('test_mlfm_resnet').eval().fuse()
        assert model(torch.empty(batch, 3, 64, 64)).shape == (batch, 10)


@small
def test_half_precision(name):
    model = create(name)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
        assert_near(reparameterize_model(model)(image), model(image), 0.1)
    model = model.bfloat16()
    with torch.no_grad():
        assert_near(reparameterize_model(model)(image.bfloat16()).float(), model(image.bfloat16()).float(), 0.1)


@pytest.mark.parametrize('name', [
    name if name == 'test_mlfm_resnet' else pytest.param(name, marks=pytest.mark.slow) for name in SMALL])
def test_exports_and_compiles(name):
    model = create(name)
    fused = reparameterize_model(model)
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = model(image)
        dynamic = {0: torch.export.Dim('batch', min=1, max=16)}
        exported = torch.export.export(fused, (image,), dynamic_shapes=(dynamic,)).module()
        assert_near(exported(image[:1]), expected[:1])
        assert_near(torch.compile(fused, backend='aot_eager', fullgraph=True)(image), expected)
        assert_near(torch.jit.script(fused)(image), expected)
        assert_near(torch.jit.trace(fused, image)(image), expected)


def test_no_checkpoint_and_no_training_of_a_fused_network(tmp_path):
    model = timm.create_model('test_mlfm_resnet', pretrained=True)
    fused = reparameterize_model(model)
    for save in (fused.state_dict, lambda: timm.models.save_for_hf(fused, tmp_path, safe_serialization=True),
                 lambda: fused.load_state_dict({})):
        with pytest.raises(RuntimeError, match=r'is fused, which no checkpoint can hold: save the network before fuse'):
            save()
    assert not list(tmp_path.glob('*.safetensors'))
    with pytest.raises(ValueError, match='not at identity'):
        calibrate_memory(fused, [torch.randn(1, 3, 64, 64)])
    features = reparameterize_model(timm.create_model('test_mlfm_resnet', features_only=True).eval())
    for network in (fused.eval(), fused.memory, fused.memory.stem, features):
        with pytest.raises(RuntimeError, match='fused for inference, .*: train the network as it was before'):
            network.train()
    assert not any(m.training for m in fused.modules())
    assert model.train().training  # what was copied can be trained
    assert not any(unit.training for unit in model.fuse().memory.units())


@needs_reference
def test_golden_logits(tmp_path):
    convert_checkpoint(REFERENCE / 'authors' / 'mobilenetv2_0.1_mlfm.pth.tar', tmp_path / 'converted')
    model = timm.create_model(f'local-dir:{tmp_path / "converted"}', pretrained=True).eval().fuse()
    golden = load_file(REFERENCE / 'golden' / 'mobilenetv2_0.1_mlfm_authors_224.safetensors')['logits']
    with torch.inference_mode():
        assert_near(model(torch.from_numpy(load_fill().image('input', (2, 3, 224, 224)))), golden, 1e-4)


@small
def test_checkpointing_covers_the_units(name):
    """Less is kept for the backward pass than without."""
    model, image, kept = create(name).train(), torch.randn(2, 3, 64, 64), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        sizes = {}

        def keep(tensor, sizes=sizes):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(image).square().sum()
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.8 * kept[0]


class Adapter(nn.Module):
    """A convolution and a second one beside it, as low-rank adapters put it there."""

    def __init__(self, conv):
        super().__init__()
        self.conv, self.beside = conv, nn.Conv2d(conv.in_channels, conv.out_channels, 1)

    def forward(self, x):
        return self.conv(x) + self.beside(x)


def double(module, args, output):
    return 2 * output


HANGING = {
    'hook on a convolution': lambda unit: unit.input_gate.conv.register_forward_hook(double),
    'hook on a norm': lambda unit: unit.input_gate.norm.register_forward_hook(double),
    'pruning': lambda unit: prune.l1_unstructured(unit.input_gate.conv, 'weight', 0.5),
    'weight norm': lambda unit: parametrizations.weight_norm(unit.input_gate.conv),
    'adapter': lambda unit: setattr(unit.input_gate, 'conv', Adapter(unit.input_gate.conv)),
    'other gate': lambda unit: setattr(unit, 'input_gate', nn.Sequential(unit.input_gate)),
}


@pytest.mark.parametrize('trunk', [False, True])
@pytest.mark.parametrize('hanging', HANGING)
def test_what_hangs_on_a_gate_stays(hanging, trunk):
    """The unit stays as it is, the others are fused, and a warning says how many and which."""
    torch.manual_seed(0)
    model = lived_in(timm.create_model('mlfm_resnet18', channels=(16, 24, 32, 40)))
    unit = model.memory.layer2[1]
    HANGING[hanging](unit)
    keys = {name for name in model.state_dict() if name.startswith('memory.layer2.1.')}
    image = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = model(image)
        with pytest.warns(UserWarning, match='1 of 6 memory units were not fused.*: layer2.1.$'):
            model.fuse(trunk=trunk)
        torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-5)
    assert model.memory.layer2[1] is unit and not unit.is_fused()
    assert {f'memory.layer2.1.{name}' for name in unit.state_dict()} == keys
    assert sum(other.is_fused() for other in model.memory.units()) == 5


def test_hooks_on_units_and_gates_survive():
    model = timm.create_model('test_mlfm_resnet').eval()
    seen = []
    stem = model.memory.stem
    for module in (stem, stem.input_gate, stem.output_gate):
        module.register_forward_hook(lambda module, args, output: seen.append(module))
    model.fuse()(torch.randn(1, 3, 64, 64))
    assert seen == [stem.input_gate, stem.output_gate, stem] and stem.is_fused()


@pytest.mark.parametrize('form', ['plain', 'fused', 'trunk fused'])
@small
def test_nothing_handed_is_overwritten(name, form):
    """What a unit is given is the same after the whole pass."""
    torch.manual_seed(0)
    model = lived_in(timm.create_model(name, **SMALL[name]))
    if form != 'plain':
        model.fuse(trunk=form == 'trunk fused')
    assert_nothing_overwritten(model)
