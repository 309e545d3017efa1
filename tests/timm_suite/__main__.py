"""Run timm's own tests/test_models.py, of the timm that is installed, on all of this project's models.

    python tests/timm_suite [pytest options]

The tests come in timm's source distribution, which pip downloads once into .cache/.
"""

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / '.cache'


def fetch_timm_tests() -> Path:
    """Path of test_models.py in the source distribution of the installed timm."""
    name = f'timm-{version("timm")}'
    tests = CACHE / name / 'tests' / 'test_models.py'
    if not tests.exists():
        CACHE.mkdir(exist_ok=True)
        subprocess.run(
            [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--no-binary', 'timm', '--dest', CACHE,
             f'timm=={version("timm")}'], check=True)
        with tarfile.open(CACHE / f'{name}.tar.gz') as archive:
            # the tests alone: the timm under test is the installed one
            members = [m for m in archive.getmembers() if m.name.startswith((f'{name}/tests/', f'{name}/pyproject'))]
            archive.extractall(CACHE, members=members, filter='data')
    return tests


def main() -> int:
    tests = fetch_timm_tests()
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(HERE), os.environ.get('PYTHONPATH', '')]))
    command = [sys.executable, '-m', 'pytest', '-p', 'plugin', tests.name, '-c', '../pyproject.toml', *sys.argv[1:]]
    return subprocess.run(command, cwd=tests.parent, env=environment).returncode


if __name__ == '__main__':
    sys.exit(main())
