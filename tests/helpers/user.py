"""A user of the loopback Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

from helpers.hub_server import TOKEN, environment

ROOT = Path(__file__).parents[2]
# what tests and the processes that they start import from, see pyproject.toml
IMPORTS = [str(ROOT / folder) for folder in ('', 'tests', 'scripts')]


class User:
    """Somebody at a machine with a login: runs commands and code against the loopback Hub."""

    def __init__(self, server, home, token=TOKEN):
        self.server, self.home, self.token = server, home, token
        self.manifest = home / 'manifest.yaml'

    def _run(self, command, offline=False, cache=None):
        env = environment(self.server.endpoint, cache or self.home, self.token, offline)
        env['PYTHONPATH'] = os.pathsep.join(IMPORTS)
        if self.manifest.exists():
            env['MLFM_ZOO_MANIFEST'] = str(self.manifest)
        return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, cwd=self.home)

    def command(self, *args, **kwargs):
        return self._run(['-m', 'mlfm_zoo', *map(str, args)], **kwargs)

    def publish(self, name, weights, *options):
        return self.command(
            'publish', name, '--weights', weights, '--namespace', 'org', '--manifest', self.manifest, *options)

    def code(self, code, **kwargs):
        """What a program prints, as JSON."""
        result = self._run(['-W', 'ignore', '-c', f'import json, timm, torch, mlfm_zoo\n{code}'], **kwargs)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)
