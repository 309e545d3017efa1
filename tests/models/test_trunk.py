"""Without memory, a network is timm's own."""

import pytest
import timm
import torch

from helpers.networks import ALL, OWN, TRUNKS


def test_networks_are_the_registered_ones():
    assert len(TRUNKS) == 26
    assert ALL == sorted(timm.list_models('mlfm_*', exclude_filters='mlfm_filtered'))
    assert set(TRUNKS.values()) <= set(timm.list_models())
    assert not {name.removeprefix('mlfm_') for name in OWN} & set(timm.list_models())


@pytest.mark.parametrize('name', TRUNKS)
def test_trunk_is_timms(name):
    torch.manual_seed(0)
    trunk = timm.create_model(TRUNKS[name], num_classes=100).eval()
    ours = timm.create_model(name, memory=False).eval()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in trunk.state_dict().items()}
    ours.load_state_dict(trunk.state_dict())
    image = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        assert torch.equal(ours(image), trunk(image))


@pytest.mark.parametrize('name', ALL)
def test_memory_adds_one_submodule(name):
    without = timm.create_model(name, memory=False, device='meta').state_dict()
    with_memory = timm.create_model(name, device='meta').state_dict()
    added = with_memory.keys() - without.keys()
    assert added and all(key.startswith('memory.') for key in added)
    assert {k: with_memory[k].shape for k in without} == {k: v.shape for k, v in without.items()}


@pytest.mark.parametrize('denominator', [2, 4, 8])
def test_partial_convolution_passes_the_first_channels_through(denominator):
    model = timm.create_model(f'mlfm_convnext_tiny_k3_par1_{denominator}', memory=False)
    conv = model.stages[1].blocks[0].conv_dw
    x = torch.randn(1, 192, 8, 8)
    y = conv(x)
    seen = 192 // denominator
    assert conv.weight.shape == (seen, 1, 3, 3)
    assert torch.equal(y[:, :-seen], x[:, :-seen])
    expected = torch.nn.functional.conv2d(x[:, -seen:], conv.weight, conv.bias, padding=1, groups=seen)
    torch.testing.assert_close(y[:, -seen:], expected)
