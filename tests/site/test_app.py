"""The page of `mlfm-zoo app` in a browser: it answers, follows the slider, explains bad files, and fits on a phone.

`MLFM_ZOO_SCREENSHOTS` names a folder to leave pictures in.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

SCREENSHOTS = os.environ.get('MLFM_ZOO_SCREENSHOTS')
WAIT = 120_000  # milliseconds, for machines that do much else

# Runs the command line, and reports each connection to another machine and each name of one that is looked up.
WATCHED = '''
import sys
def watch(event, args):
    if event == 'socket.connect' and isinstance(args[1], tuple) and args[1][0] not in ('127.0.0.1', '::1'):
        print('connects to', args[1], flush=True)
    if event == 'socket.getaddrinfo' and args[0] not in ('127.0.0.1', 'localhost', None):
        print('looks up', args[0], flush=True)
sys.addaudithook(watch)
from mlfm_zoo_cli import main
sys.exit(main(['app']))
'''


@pytest.fixture(scope='module')
def address(tmp_path_factory):
    """A running page without a cache of weights; at its end it must have asked nothing of other machines."""
    env = dict(os.environ, HF_HOME=str(tmp_path_factory.mktemp('cache')), HF_HUB_OFFLINE='1')
    env.pop('MLFM_ZOO_PAPER_MIRROR', None)
    with subprocess.Popen([sys.executable, '-c', WATCHED], env=env, stdout=subprocess.PIPE, text=True) as server:
        line = server.stdout.readline()
        found = re.fullmatch(r'Open (http://127\.0\.0\.1:\d+/) in a browser\. Ctrl-C stops the page\.\n', line)
        assert found, line
        yield found[1]
        server.terminate()
        assert server.stdout.read() == ''


def open_app(page, address):
    page.goto(address)
    page.locator('.results').wait_for(timeout=WAIT)
    return page


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_page(open_page, address, size, scheme):
    """Fits the screen, and axe finds nothing serious."""
    page = open_app(open_page(size, color_scheme=scheme), address)
    assert page.evaluate('document.documentElement.scrollWidth') <= page.viewport_size['width']
    assert page.evaluate('document.body.classList.contains("dark")') == (scheme == 'dark')
    serious = [f'{found["id"]}: {found["nodes"][0]["html"]}' for found in Axe().run(page).response['violations']
               if found['impact'] in ('serious', 'critical')]
    assert not serious, '\n'.join(serious)
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS) / f'app-{size}-{scheme}.png', full_page=True)


def test_upload_and_slider(open_page, address, tmp_path):
    page = open_app(open_page(), address)
    answers, photo = page.locator('.results ol').first, page.locator('.results img').first
    assert answers.locator('li').count() == 5 and page.locator('.maps img').count() > 1
    before = photo.get_attribute('src')
    Image.effect_mandelbrot((300, 200), (-2, -1, 1, 1), 50).save(tmp_path / 'mine.png')
    page.locator('input[type=file]').set_input_files(tmp_path / 'mine.png')
    expect(photo).not_to_have_attribute('src', before, timeout=WAIT)

    whole, text = photo.get_attribute('src'), answers.inner_text()
    slider, line = page.get_by_role('slider'), page.locator('svg .now')
    assert float(line.get_attribute('x1')) == 1000
    slider.focus()
    slider.press('Home')
    expect(line).to_have_attribute('x1', '0.0', timeout=WAIT)
    assert photo.get_attribute('src') != whole and answers.inner_text() != text
    page.get_by_label('low').check()
    expect(page.locator('.results')).to_contain_text('up to the radius', timeout=WAIT)
    expect(photo).to_have_attribute('src', whole)  # at 0, nothing low is taken away


def test_photograph_of_the_page(open_page, address):
    page = open_app(open_page(), address)
    photo = page.locator('.results img').first
    before = photo.get_attribute('src')
    page.get_by_role('button', name='hat').click()
    expect(photo).not_to_have_attribute('src', before, timeout=WAIT)


def test_bad_files_and_missing_weights(open_page, address, tmp_path):
    """One sentence, and what was shown stays."""
    page = open_app(open_page(), address)
    shown = page.locator('.results').inner_text()
    (tmp_path / 'letter.txt').write_text('no image')
    page.locator('input[type=file]').set_input_files(tmp_path / 'letter.txt')
    alert = page.get_by_role('alert')
    expect(alert).to_have_text('letter.txt cannot be decoded as an image: repair or remove it.', timeout=WAIT)
    page.get_by_label('Network').click()
    page.get_by_role('option', name='mlfm_mobilenetv2_010.paper_in100 (is downloaded first)').click()
    expect(alert).to_contain_text('HF_HUB_OFFLINE is set', timeout=WAIT)
    assert page.locator('.results').inner_text() == shown
