"""The browser that tests of the site and of the page of `mlfm-zoo app` share."""

import pytest

# What Gradio's stand-in for an EventSource prints when Gradio closes it.
OF_GRADIO = 'Method not implemented.'
SIZES = {'desktop': (1280, 800), 'phone': (390, 844)}


@pytest.fixture(scope='session')
def browser():
    from playwright.sync_api import sync_playwright  # test_pages.py runs without it

    from find_browser import launch
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture(params=SIZES)
def size(request):
    return request.param


@pytest.fixture
def open_page(browser, address):
    """Opens pages; what they complain of, and what they ask of other hosts, fails the test at its end."""
    complaints, contexts = [], []

    def make(size='desktop', **options):
        width, height = SIZES[size]
        contexts.append(browser.new_context(viewport=dict(width=width, height=height), **options))
        page = contexts[-1].new_page()
        page.on('console', lambda message: complaints.append(f'{page.url}: {message.text}')
                if message.type in ('error', 'warning') and message.text != OF_GRADIO else None)
        page.on('pageerror', lambda error: complaints.append(f'{page.url}: {error}'))
        page.on('requestfailed', lambda request: complaints.append(f'{page.url}: no {request.url} ({request.failure})')
                if request.failure != 'net::ERR_ABORTED' else None)  # by leaving for the next page
        page.on('request', lambda request: complaints.append(f'{page.url} asks {request.url}')
                if not request.url.startswith((address, 'data:', 'blob:')) else None)
        page.on('response', lambda response: complaints.append(f'{page.url}: {response.status} {response.url}')
                if response.status >= 400 else None)
        return page

    yield make
    for context in contexts:
        context.close()
    assert not complaints, '\n'.join(complaints)
