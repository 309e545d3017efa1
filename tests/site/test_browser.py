"""The built site in a browser, which shows its pages without complaint, on a phone too.

`make site` builds it, finds a browser and runs these tests. `MLFM_ZOO_SCREENSHOTS` names a folder to leave pictures of
some pages in.
"""

import functools
import os
import re
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from helpers.loopback import LoopbackServer
from test_pages import PAGES, SAMPLE, SITE

SCREENSHOTS = os.environ.get('MLFM_ZOO_SCREENSHOTS')


@pytest.fixture(scope='module')
def address():
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    with LoopbackServer(functools.partial(Quiet, directory=SITE)) as server:
        yield f'{server.endpoint}/'


def test_every_page_loads_quietly(open_page, address):
    page = open_page()
    for path in PAGES:
        response = page.goto(address + path, wait_until='load')
        assert response.status == 200, path
        if path != '404.html':
            assert page.locator('h1').first.inner_text(), path


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_nothing_sticks_out(open_page, address, size, scheme):
    """No page is wider than the screen, and pictures are loaded in their form; the system's colors are followed."""
    page = open_page(size, color_scheme=scheme)
    for path in SAMPLE:
        page.goto(address + path, wait_until='load')
        assert page.evaluate('document.body.dataset.mdColorScheme') == {'light': 'default', 'dark': 'slate'}[scheme]
        width = page.viewport_size['width']
        assert page.evaluate('document.documentElement.scrollWidth') <= width, path
        for picture in page.locator('article img').all():
            picture.scroll_into_view_if_needed()
            page.wait_for_function('i => i.complete && i.naturalWidth > 0', arg=picture.element_handle())
            form = picture.evaluate('i => (i.clientWidth / i.clientHeight) / (i.naturalWidth / i.naturalHeight)')
            assert abs(form - 1) < 0.05, path
            assert picture.evaluate('i => i.clientWidth') <= width
        if SCREENSHOTS:
            page.evaluate('window.scrollTo(0, 0)')
            page.wait_for_timeout(500)  # the header changes slowly
            name = f'{path.strip("/").replace("/", "-") or "index"}-{size}-{scheme}.png'
            page.screenshot(path=Path(SCREENSHOTS) / name, full_page=path == '')


def test_wide_tables_scroll_on_a_phone(open_page, address):
    page = open_page('phone')
    page.goto(address + 'models/', wait_until='load')
    wrap = page.locator('.md-typeset__scrollwrap').first
    assert wrap.evaluate('e => getComputedStyle(e).overflowX') == 'auto'
    assert wrap.evaluate('e => e.scrollWidth > e.clientWidth')


def test_menu_opens_on_a_phone(open_page, address):
    page = open_page('phone')
    page.goto(address, wait_until='load')
    page.locator('label.md-header__button[for=__drawer]').click()
    page.locator('.md-nav--primary').get_by_text('Explanation', exact=True).first.wait_for(state='visible')


@pytest.mark.parametrize('words, name', [
    ('mlfm_regnety_004', 'mlfm_regnety_004'), ('resnet50 pretrained', 'mlfm_resnet50'),
    ('regnety 004', 'mlfm_regnety_004')])
def test_search_finds_networks_by_parts_of_names(open_page, address, words, name):
    page = open_page()
    page.goto(address, wait_until='load')
    page.locator('.md-search__input').click()
    page.locator('.md-search__input').press_sequentially(words)
    page.locator(f'.md-search-result__link[href*="{name}"]').first.wait_for(state='attached', timeout=30_000)
    if words == name:
        best = page.locator('.md-search-result__link').first
        expect(best).to_have_attribute('href', re.compile(f'/networks/{name}/'))
        best.click()
        page.wait_for_url(re.compile(f'/networks/{name}/'))
        assert page.locator('h1').inner_text().startswith(name)


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_no_serious_accessibility_finding(open_page, address, scheme):
    page = open_page(color_scheme=scheme)
    serious = []
    for path in SAMPLE:
        page.goto(address + path, wait_until='load')
        page.wait_for_timeout(500)  # colors change slowly
        serious += [f'{path}: {found["id"]}: {found["nodes"][0]["html"]}'
                    for found in Axe().run(page).response['violations'] if found['impact'] in ('serious', 'critical')]
    assert not serious, '\n'.join(serious)


def test_table_of_networks_sorts_and_filters(open_page, address):
    page = open_page()
    page.goto(address, wait_until='load')
    table = page.locator('.networks-table')
    shown = table.locator('tbody tr:not([hidden])')
    everything = shown.count()
    assert everything == 60
    page.locator('.networks select').select_option('MobileNetV2')
    assert shown.count() == 5
    page.get_by_label('with weights').check()
    page.locator('.networks input[type=search]').fill('075')
    expect(page.locator('.networks [role=status]')).to_have_text('1 network')
    assert shown.inner_text().startswith('mlfm_mobilenetv2_075')
    page.locator('.networks input[type=search]').fill('')
    page.locator('.networks select').select_option('')
    page.get_by_label('with weights').uncheck()
    head = table.locator('th', has_text='params')
    for order in ('ascending', 'descending'):
        head.get_by_role('button').click()
        assert head.get_attribute('aria-sort') == order
        params = [float(text) for text in table.locator('tbody td:nth-child(3)').all_inner_texts()]
        assert len(params) == everything and params == sorted(params, reverse=order == 'descending')


def test_colors_toggle_and_stay(open_page, address):
    page = open_page(color_scheme='light')
    page.goto(address, wait_until='load')

    def scheme():
        return page.evaluate('document.body.dataset.mdColorScheme')

    seen = [scheme()]
    for _ in range(2):  # automatic, light, dark
        page.locator('form[data-md-component=palette] label:not([hidden])').click()
        seen.append(scheme())
    assert seen == ['default', 'default', 'slate']
    page.goto(address + 'models/', wait_until='load')
    assert scheme() == 'slate'
