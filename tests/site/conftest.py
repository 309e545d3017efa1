"""The browser that tests of the site and of the page of `mlfm-zoo app` share."""

import pytest


@pytest.fixture(scope='session')
def browser():
    from playwright.sync_api import sync_playwright  # test_pages.py runs without it

    from find_browser import launch
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()
