"""Networks on DCT coefficients in the released form."""

import re

import pytest
import timm
import torch

from helpers.networks import lived_in
from mlfm_zoo.convert import convert_state_dict


def test_convert_of_other_counts():
    """Sixty-four coefficients, six, and all, under the released names; a subset that no file tells."""
    for name, kind in (('dct_resnet50_64s', 0), ('dct_mobilenetv2_100_6s', 1), ('dct_mobilenetv2_100_192', 1)):
        torch.manual_seed(0)
        model = lived_in(timm.create_model(name, num_classes=9))
        released = {_released_name(k, kind): v for k, v in model.state_dict().items()}
        conversion = convert_state_dict(released)
        assert (conversion.architecture, conversion.model_args) == (name, dict(num_classes=9))
        assert all(torch.equal(conversion.state_dict[k], v) for k, v in model.state_dict().items())
    released = {_released_name(k, 0): v for k, v in timm.create_model(
        'dct_resnet50_24s', dct_channels='40t').state_dict().items()}
    with pytest.raises(ValueError, match='on 40 DCT coefficients, .* give dct_channels'):
        convert_state_dict(released)
    assert convert_state_dict(released, dict(dct_channels='40t')).model_args['dct_channels'] == '40t'
    with pytest.raises(ValueError, match='was not recogni'):
        convert_state_dict({**released, 'model.7.0.bn1.bias': torch.ones(3)}, dict(dct_channels='40t'))


def _released_name(name, kind):
    if kind == 0:
        return re.sub(r'^layer(\d)', lambda m: f'model.{int(m[1]) - 1}', name)
    depths = (1, 2, 3, 4, 3, 3, 1)
    if match := re.match(r'blocks\.(\d)\.(\d)\.(\w+)\.(.+)', name):
        group, block = int(match[1]), int(match[2])
        parts = dict(conv_dw=0, bn1=1, conv_pw=3, bn2=4) if group == 0 else dict(
            conv_pw=0, bn1=1, conv_dw=3, bn2=4, conv_pwl=6, bn3=7)
        return f'features.{sum(depths[:group]) + block}.conv.{parts[match[3]]}.{match[4]}'
    return name.replace('conv_head.', 'conv.0.').replace('bn2.', 'conv.1.')
