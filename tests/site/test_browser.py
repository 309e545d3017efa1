"""The built site in a browser, which shows its pages without complaint, on a phone too.

`make site` builds it, finds a browser and runs these tests. `MLFM_ZOO_SCREENSHOTS` names a folder to leave pictures of
some pages in.
"""

import functools
import os
import re
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from test_pages import PAGES, SAMPLE, SITE

SCREENSHOTS = os.environ.get('MLFM_ZOO_SCREENSHOTS')
SIZES = {'desktop': (1280, 800), 'phone': (390, 844)}


@pytest.fixture(scope='module')
def address():
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    with ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=SITE)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()


@pytest.fixture
def open_page(browser, address):
    """Opens pages of the site; what a page complains of, and what it asks of other hosts, fails the test at its end."""
    complaints = []
    contexts = []

    def listen(page):
        page.on('console', lambda message: complaints.append(f'{page.url}: {message.text}')
                if message.type in ('error', 'warning') else None)
        page.on('pageerror', lambda error: complaints.append(f'{page.url}: {error}'))
        page.on('requestfailed', lambda request: complaints.append(f'{page.url}: no {request.url} ({request.failure})')
                if request.failure != 'net::ERR_ABORTED' else None)  # by leaving for the next page
        page.on('request', lambda request: complaints.append(f'{page.url} asks {request.url}')
                if not request.url.startswith((address, 'data:', 'blob:')) else None)
        page.on('response', lambda response: complaints.append(f'{page.url}: {response.status} {response.url}')
                if response.status >= 400 else None)

    def make(size='desktop', **options):
        width, height = SIZES[size]
        context = browser.new_context(viewport=dict(width=width, height=height), **options)
        contexts.append(context)
        page = context.new_page()
        listen(page)
        return page

    yield make
    for context in contexts:
        context.close()
    assert not complaints, '\n'.join(complaints)


def test_every_page_loads_quietly(open_page, address):
    page = open_page()
    for path in PAGES:
        response = page.goto(address + path, wait_until='load')
        assert response.status == 200, path
        if path != '404.html':
            assert page.locator('h1').first.inner_text(), path


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('size', SIZES)
def test_nothing_sticks_out(open_page, address, size, scheme):
    """No page is wider than the screen, and pictures are loaded in their form; the system's colors are followed."""
    page = open_page(size, color_scheme=scheme)
    for path in SAMPLE:
        page.goto(address + path, wait_until='load')
        assert page.evaluate('document.body.dataset.mdColorScheme') == {'light': 'default', 'dark': 'slate'}[scheme]
        width = page.evaluate('document.documentElement.scrollWidth')
        assert width <= SIZES[size][0], f'{path} is {width} wide'
        for picture in page.locator('article img').all():
            picture.scroll_into_view_if_needed()
            page.wait_for_function('i => i.complete && i.naturalWidth > 0', arg=picture.element_handle())
            form = picture.evaluate('i => (i.clientWidth / i.clientHeight) / (i.naturalWidth / i.naturalHeight)')
            assert abs(form - 1) < 0.05, path
            assert picture.evaluate('i => i.clientWidth') <= SIZES[size][0]
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


def test_search_finds_a_network(open_page, address):
    page = open_page()
    page.goto(address, wait_until='load')
    page.locator('.md-search__input').click()
    page.locator('.md-search__input').press_sequentially('mlfm_regnety_004')
    result = page.locator('.md-search-result__link').first
    expect(result).to_have_attribute('href', re.compile('/networks/mlfm_regnety_004/'), timeout=30_000)
    result.click()
    page.wait_for_url(re.compile('/networks/mlfm_regnety_004/'))
    assert page.locator('h1').inner_text().startswith('mlfm_regnety_004')


@pytest.mark.parametrize('words, name', [('resnet50 pretrained', 'mlfm_resnet50'), ('regnety 004', 'mlfm_regnety_004')])
def test_search_finds_parts_of_names(open_page, address, words, name):
    page = open_page()
    page.goto(address, wait_until='load')
    page.locator('.md-search__input').click()
    page.locator('.md-search__input').press_sequentially(words)
    found = page.locator(f'.md-search-result__link[href*="{name}"]').first
    found.wait_for(state='attached', timeout=30_000)


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
    expect(page.locator('.networks [role=status]')).to_have_text('1 networks')
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
