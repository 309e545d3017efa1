"""Find a browser for the tests of the site, or install one.

    python tests/site/find_browser.py

starts the first that is there: playwright's own Chromium, then an installed Chrome, Edge or Chromium. If there is none,
it installs playwright's or, where that is not available or lacks libraries, the system's, which needs root.
"""

import os
import shutil
import subprocess
import sys

from playwright.sync_api import Browser, Error, Playwright, sync_playwright

INSTALLED = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'microsoft-edge')
MISSING = 'There is no browser to test the site with: install Chromium or Chrome, so that it is on the PATH.'


def launch(playwright: Playwright) -> Browser:
    """Start a browser without a window; a RuntimeError if there is none that starts."""
    found = [path for path in map(shutil.which, INSTALLED) if path]
    # a container's root has no namespaces of its own for Chromium's sandbox, and the pages are ours
    args = ['--no-sandbox'] if hasattr(os, 'geteuid') and os.geteuid() == 0 else []
    for path in (None, *found):
        try:
            return playwright.chromium.launch(executable_path=path, args=args)
        except Error:
            continue
    raise RuntimeError(MISSING)


def starts() -> bool:
    """Whether there is a browser that starts."""
    with sync_playwright() as playwright:
        try:
            launch(playwright).close()
        except RuntimeError:
            return False
    return True


def main() -> None:
    if starts():
        return
    install = [[sys.executable, '-m', 'playwright', 'install', 'chromium']]
    if shutil.which('apt-get') and os.geteuid() == 0:
        install += [['apt-get', 'update', '-q'],
                    ['apt-get', 'install', '-y', '-q', '--no-install-recommends', 'chromium'],
                    [sys.executable, '-m', 'playwright', 'install-deps', 'chromium']]
    for command in install:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=300)
        if done.returncode == 0 and starts():
            return
    sys.exit(f'error: {MISSING}')


if __name__ == '__main__':
    main()
