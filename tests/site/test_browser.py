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
from playwright.sync_api import expect, sync_playwright

from find_browser import launch
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


@pytest.fixture(scope='module')
def browser():
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


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
                if request.failure != 'net::ERR_ABORTED' else None)  # by going on to the next page
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
    """No page is wider than the screen, and pictures are loaded in their form; the system's colours are followed."""
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
    page.locator('.md-nav--primary').get_by_text('Checkpoints', exact=True).first.wait_for(state='visible')


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


def test_colours_toggle_and_stay(open_page, address):
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
