"""What people do with a timm model, done with ours."""

import copy
import pickle

import pytest
import timm
import torch

import mlfm_zoo
from helpers.networks import ALL, SMALL, SMALL_GSSDNET

EVERY = {**SMALL, **SMALL_GSSDNET}
small = pytest.mark.parametrize('name', SMALL)
every = pytest.mark.parametrize('name', EVERY)
# for tests that take seconds for each network, such as an export; the slow suite runs the others
large = pytest.mark.parametrize('name', [
    name if name in ('test_mlfm_resnet', 'mlfm_mobilenetv2_010') else pytest.param(name, marks=pytest.mark.slow)
    for name in EVERY])


def create(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **dict(EVERY.get(name, {}), **kwargs)).eval()


@every
@pytest.mark.parametrize('size', [(32, 32), (33, 47), (225, 193), (256, 128)])
def test_any_size(name, size):
    with torch.inference_mode():
        logits = create(name)(torch.randn(1, 3, *size))
    assert logits.shape == (1, create(name).num_classes)
    assert logits.isfinite().all()


@every
@pytest.mark.parametrize('output_stride', [8, 16])
def test_output_stride(name, output_stride):
    model = create(name, features_only=True, output_stride=output_stride)
    with torch.inference_mode():
        features = model(torch.randn(1, 3, 64, 96))
        model(torch.randn(1, 3, output_stride, output_stride))  # the deepest map is finer, and smaller images fit it
    assert max(model.feature_info.reduction()) == output_stride
    assert [f.shape[-2:] for f in features] == [(64 // r, 96 // r) for r in model.feature_info.reduction()]
    # dilation changes no parameter: weights trained at one output stride fit another
    shapes = [{k: v.shape for k, v in m.state_dict().items()}
              for m in (create(name), create(name, output_stride=output_stride))]
    assert shapes[0] == shapes[1]


@every
def test_layouts_and_dtypes_agree(name):
    model, image = create(name), torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = model(image)
        channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        torch.testing.assert_close(
            channels_last(image.to(memory_format=torch.channels_last)), expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(
            copy.deepcopy(model).double()(image.double()).float(), expected, rtol=1e-3, atol=1e-4)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            half = model(image)
        assert half.isfinite().all()
        error = (half.float() - expected).abs().max() / expected.abs().max()
        assert error < 0.1, f'bfloat16 is off by {error:.2f} of the largest logit'


@small
def test_channels_last_is_kept(name):
    """No unit turns the layout back, which would cost a copy at each site."""
    model = create(name).to(memory_format=torch.channels_last)
    layouts = []
    for unit in model.memory.units():
        unit.register_forward_hook(
            lambda m, args, out: layouts.extend(t.is_contiguous(memory_format=torch.channels_last) for t in out))
    with torch.inference_mode():
        model(torch.randn(2, 3, 128, 128).to(memory_format=torch.channels_last))
    assert layouts and all(layouts)


@every
def test_meta_and_back(name):
    model = create(name)
    meta = create(name, device='meta')
    assert all(t.is_meta for t in [*meta.parameters(), *meta.buffers()])
    meta.to_empty(device='cpu').load_state_dict(model.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(meta.eval()(image), model(image))


@every
def test_copies_answer_alike(name):
    model, image = create(name), torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = model(image)
        for same in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(same(image), expected)
        # alone or in a batch, an image gets the same answer
        torch.testing.assert_close(model(image[:1]), expected[:1], rtol=1e-4, atol=1e-5)


@every
def test_no_state_is_kept_between_calls(name):
    """What a forward pass leaves behind would break DataParallel and threads."""
    model = create(name)

    def attributes():
        return {(n, k): id(v) for n, m in model.named_modules() for k, v in vars(m).items()}

    before = attributes()
    with torch.inference_mode():
        model(torch.randn(1, 3, 64, 64))
        model(torch.randn(2, 3, 96, 64))
    assert attributes() == before


@large
def test_compile_without_graph_breaks(name):
    model, image = create(name), torch.randn(2, 3, 64, 64)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    with torch.no_grad():
        torch.testing.assert_close(compiled(image), model(image))


def test_compile_with_inductor():
    model, image = create('test_mlfm_resnet'), torch.randn(2, 3, 64, 64)
    torch.compiler.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(image), model(image), rtol=1e-3, atol=1e-4)


@large
def test_export_with_odd_sizes(name):
    model = create(name)
    dynamic = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    exported = torch.export.export(model, (torch.randn(2, 3, 224, 256),), dynamic_shapes=(dynamic,)).module()
    image = torch.randn(3, 3, 225, 193)
    with torch.no_grad():
        torch.testing.assert_close(exported(image), model(image), rtol=1e-3, atol=1e-5)


@every
def test_grad_checkpointing_changes_no_gradient(name):
    gradients, image = [], torch.randn(2, 3, 64, 64)
    for enable in (False, True):
        model = create(name, features_only=True).train()
        model.set_grad_checkpointing(enable)
        sum(feature.square().mean() for feature in model(image)).backward()
        gradients.append([p.grad for p in model.parameters()])
    for without, with_checkpointing in zip(*gradients):
        torch.testing.assert_close(with_checkpointing, without)


@small
def test_features_are_what_the_units_put_out(name):
    model, outputs = create(name), []
    for unit in model.memory.units():
        unit.register_forward_hook(lambda m, args, out: outputs.append(out[0]))
    with torch.inference_mode():
        intermediates = model.forward_intermediates(torch.randn(1, 3, 64, 64), intermediates_only=True)
    put_out = {id(x) for x in outputs}
    if 'mobilenetv2' in name or 'efficientnet' in name:  # no unit after the first and the last stage
        assert [id(x) in put_out for x in intermediates] == [False, True, True, True, False]
    else:
        assert all(id(x) in put_out for x in intermediates)


@pytest.mark.parametrize('feature_cls', ['list', 'dict', 'hook', 'fx'])
def test_features_only_takes_no_shortcut_past_the_memory(feature_cls):
    with pytest.raises(ValueError, match="expected 'getter'"):
        create('test_mlfm_resnet', features_only=True, feature_cls=feature_cls)


@every
def test_stages_are_called_as_modules(name):
    """Hooks on the modules that `feature_info` names see what they see in timm: each of them, once and in order."""
    model, called = create(name), []
    expected = [info['module'] for info in model.feature_info]
    for module in expected:
        model.get_submodule(module).register_forward_hook(lambda m, args, out, module=module: called.append(module))
    with torch.inference_mode():
        model(torch.randn(1, 3, 64, 64))
    assert called == expected


def test_features_have_one_layout():
    with pytest.raises(ValueError, match="output_fmt is 'NHWC', expected 'NCHW'"):
        create('test_mlfm_resnet').forward_intermediates(torch.randn(1, 3, 64, 64), output_fmt='NHWC')


@pytest.mark.parametrize('name, kwargs, said', [
    ('test_mlfm_resnet', dict(memory_gate=1), "'memory_gate' is not an option of the memory, expected .*memory_split"),
    ('mlfm_mobilenetv2_010', dict(memory_split=True), "'memory_split' is not an option .*, memory_forget_last.$"),
    ('test_mlfm_resnet', dict(memory=False, memory_update='cat'), "unexpected keyword argument 'memory_update'")])
def test_unknown_keyword(name, kwargs, said):
    with pytest.raises(TypeError, match=said):
        create(name, **kwargs)


@pytest.mark.parametrize('name, option, value', [
    ('mlfm_resnet34', 'memory', 'no'), ('mlfm_resnet34', 'memory', 1), ('mlfm_resnet34', 'memory_update', 'mul'),
    ('mlfm_resnet34', 'memory_supplement', 'most'), ('mlfm_resnet34', 'memory_forget_last', 1),
    ('mlfm_resnet34', 'memory_split', 'yes'), ('mlfm_convnext_tiny', 'conv_ratio', 'x'),
    ('mlfm_convnext_tiny', 'conv_ratio', 0.0001), ('mlfm_convnext_tiny', 'conv_ratio', 2)])
def test_options_out_of_range(name, option, value):
    with pytest.raises(ValueError, match=f'{option} is {value!r}, expected') as error:
        timm.create_model(name, device='meta', **{option: value})
    assert '\n' not in str(error.value)


@small
@pytest.mark.parametrize('update', ['add', 'cat'])
@pytest.mark.parametrize('supplement', ['all', 'all_but_last', 'none'])
def test_memory_options(name, update, supplement):
    model = create(name, memory_update=update, memory_supplement=supplement)
    units = model.memory.units()
    assert {u.update for u in units} == {update}
    gates = sum(u.supplement_gate is not None for u in units)
    assert gates == {'all': len(units), 'all_but_last': len(units) - 1, 'none': 0}[supplement]
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 64, 64)).isfinite().all()


def sites(name):
    units = [(n, m) for n, m in timm.create_model(name, device='meta').named_modules()
             if isinstance(m, mlfm_zoo.LowFrequencyMemoryUnit)]
    return {n.removeprefix('memory.'): u.level for n, u in units}, [u for _, u in units]


@pytest.mark.parametrize('name, expected', [
    ('mlfm_resnet10', {'stem': 1, 'pool': 2, 'layer1.0': 2, 'layer2.0': 3, 'layer3.0': 4, 'layer4.0': 5}),
    ('mlfm_resnet18', {'stem': 1, 'pool': 2, 'layer1.1': 2, 'layer2.1': 3, 'layer3.1': 4, 'layer4.1': 5}),
    ('mlfm_resnet34', {'stem': 1, 'pool': 2, 'layer1.2': 2, 'layer2.1': 3, 'layer2.3': 3, 'layer3.2': 4, 'layer3.5': 4,
                       'layer4.2': 5}),
    ('mlfm_resnet50', {'stem': 1, 'pool': 2, 'layer1.2': 2, 'layer2.1': 3, 'layer2.3': 3, 'layer3.2': 4, 'layer3.5': 4,
                       'layer4.2': 5}),
    ('mlfm_seresnet34', {'stem': 1, 'pool': 2, 'layer1.2': 2, 'layer2.3': 3, 'layer3.5': 4, 'layer4.2': 5}),
    ('mlfm_seresnet50', {'stem': 1, 'pool': 2, 'layer1.2': 2, 'layer2.3': 3, 'layer3.5': 4, 'layer4.2': 5}),
    ('mlfm_mobilenetv2_100', {'stem': 1, 'blocks.1': 2, 'blocks.2': 3, 'blocks.3': 4, 'blocks.4': 4, 'blocks.5': 5}),
    ('mlfm_efficientnet_b4', {'stem': 1, 'blocks.1': 2, 'blocks.2': 3, 'blocks.3': 4, 'blocks.4': 4, 'blocks.5': 5}),
    ('mlfm_regnetx_002', {'stem': 1, 's1': 2, 's2': 3, 's3': 4, 's4': 5}),
    ('mlfm_convnext_small', {'stem': 2, 'stages.0': 2, 'stages.1': 3, 'stages.2': 4, 'stages.3': 5}),
    ('mlfm_inception_next_tiny', {'stem': 2, 'stages.0': 2, 'stages.1': 3, 'stages.2': 4, 'stages.3': 5}),
])
def test_sites(name, expected):
    assert sites(name)[0] == expected


@pytest.mark.parametrize('name', ALL)
def test_definition_of_all_networks(name):
    levels, units = sites(name)
    update = 'cat' if 'mobilenetv2' in name else 'add'
    assert {u.update for u in units} == {update}
    without_supplement = [site for site, u in zip(levels, units) if u.supplement_gate is None]
    assert without_supplement == (['layer4.1'] if name == 'mlfm_resnet18' else [])
    model = timm.create_model(name, device='meta')
    assert model.num_classes == 100
    assert model.pretrained_cfg['mean'] == timm.data.IMAGENET_DEFAULT_MEAN
    assert model.pretrained_cfg['std'] == timm.data.IMAGENET_DEFAULT_STD


@pytest.mark.parametrize('name, size, crop_pct, interpolation', [
    ('mlfm_resnet50', 256, 1.0, 'bilinear'), ('mlfm_seresnet10', 256, 1.0, 'bilinear'),
    ('mlfm_regnety_008', 256, 1.0, 'bilinear'), ('mlfm_mobilenetv2_010', 224, 0.875, 'bilinear'),
    ('mlfm_convnext_tiny', 224, 0.875, 'bicubic'), ('mlfm_inception_next_tiny', 224, 0.875, 'bicubic'),
])
def test_evaluation_settings(name, size, crop_pct, interpolation):
    config = timm.data.resolve_model_data_config(timm.create_model(name, device='meta'))
    assert config['input_size'] == (3, size, size)
    assert (config['crop_pct'], config['interpolation']) == (crop_pct, interpolation)
