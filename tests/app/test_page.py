"""The page's functions with Gradio, without a browser: its parts, the command, its manners, and the Space's folder."""

import ast
import re
import socket
from pathlib import Path

import yaml

from mlfm_zoo.app import page
from mlfm_zoo.app.answers import HIGH, LOW

ROOT = Path(__file__).parents[2]
NETWORK = 'test_mlfm_resnet.digits'


def test_look():
    """What follows the slider changes with it; at its neutral ends it is the same in both directions."""
    look, note = page.look_at(NETWORK, page.PHOTOS[0], HIGH)
    assert note == '' and look.curves.radii[-1] == 46
    whole = page.draw(look, HIGH, 46)
    assert 'With memory' in whole and 'no weights that were trained without memory' in whole
    assert whole.count('Memory after') == 7
    assert page.draw(look, HIGH, 3) != whole

    def answers(text):
        return re.findall(r'<li .*?</li>', text)
    assert answers(page.draw(look, LOW, 0)) == answers(whole)


def test_page_is_built():
    config = page.make_page().get_config_file()
    labels = {c['props'].get('label') for c in config['components']}
    assert {'Network', 'Your photograph', 'Frequencies to take away', 'Radius in cycles per image'} <= labels
    assert not config['analytics_enabled']
    assert len([c for c in config['components'] if c['type'] == 'button']) == 6


def test_port_in_use(fail):
    with socket.socket() as other:
        other.bind(('127.0.0.1', 0))
        other.listen()
        assert 'port' in fail('app', '--port', other.getsockname()[1])


def test_space_installs_what_the_extra_does():
    """A Space reads requirements.txt, not pyproject.toml."""
    project = (ROOT / 'pyproject.toml').read_text(encoding='utf-8')
    wanted = [requirement for key in ('dependencies', 'app') for requirement in ast.literal_eval(
        re.search(rf'^{key} = (\[.*?\])$', project, re.MULTILINE | re.DOTALL)[1])]
    lines = (ROOT / 'app' / 'requirements.txt').read_text(encoding='utf-8').splitlines()
    assert sorted(line for line in lines if not line.startswith('#')) == sorted(wanted)
    front = yaml.safe_load((ROOT / 'app' / 'README.md').read_text(encoding='utf-8').split('---')[1])
    assert front['sdk'] == 'gradio' and front['app_file'] == 'app.py' and front['license'] == 'apache-2.0'
    assert any(line.startswith('gradio>=') for line in lines)
