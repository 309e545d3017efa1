"""Check a release: it is complete, and works with the newest and oldest versions.

    make release-check          # or python scripts/release_check.py [--output dist]

Builds the sdist, and the wheel from it; checks their metadata, that version, changelog and citation agree, and that the
repository has one address everywhere; installs the wheel into two empty environments, of the newest versions and of
those in tests/lower-bounds.txt, and runs scripts/smoke.py there, without a network; then adds the extras to the newer
one and writes the licenses of all that a user gets with them to licenses.md beside the wheel. Takes minutes, publishes
nothing.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any, Dict, List

import yaml

ROOT = Path(__file__).parents[1]
EXTRAS = 'demo,frequency,jpeg,detection,segmentation'
# Of what a user installs, nothing may be under a license that would reach over to the user's own code.
REFUSED = re.compile(r'\b(A?GPL|GNU (Affero )?General Public)', re.IGNORECASE)


class ReleaseError(Exception):
    """Something does not hold that a release needs."""


def run(*command: Any, cwd: Path = ROOT) -> str:
    """Run a command, and return what it printed; its output is shown where it fails."""
    ran = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    if ran.returncode:
        print(ran.stdout, ran.stderr, sep='\n', file=sys.stderr)
        raise ReleaseError(f'{" ".join(map(str, command))} ended with {ran.returncode}: mend what it says above.')
    return ran.stdout


def check_version() -> str:
    """The version, which package, changelog and citation have to say alike."""
    [version] = re.findall(r"^__version__ = '(.+)'$", (ROOT / 'mlfm_zoo' / '__init__.py').read_text(), re.MULTILINE)
    releases = re.findall(r'^## \[(\d.*)\] - (\d{4}-\d\d-\d\d)$', (ROOT / 'CHANGELOG.md').read_text(), re.MULTILINE)
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    cited = str(citation.get('version')), str(citation.get('date-released'))
    if not releases or releases[0] != cited or releases[0][0] != version:
        raise ReleaseError(
            f'The package says version {version}, the changelog {releases[:1]} and CITATION.cff {cited}, expected the '
            'same version and date: write them alike.')
    return version


def check_address() -> str:
    """The address of the repository, the same in package, site and README; 'ADDRESS' if it has none yet."""
    found = {}
    for file, line in (
        ('pyproject.toml', r'Repository = "(\S+)"'), ('mkdocs.yml', r'repo_url: (https?\S+)'),
        ('README.md', r'git clone (\S+) mlfm_zoo'),
    ):
        addresses = re.findall(f'^{line}', (ROOT / file).read_text(encoding='utf-8'), re.MULTILINE)
        found[file] = addresses[0] if addresses else 'ADDRESS'
    if len(set(found.values())) != 1:
        raise ReleaseError(f'The repository has different addresses: {found}. Write the same address into all three.')
    return found['README.md']


def build(output: Path) -> Path:
    """Build and check sdist and wheel, put them into a folder, and return the wheel."""
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, '-m', 'build', '--outdir', folder, ROOT)
        files = sorted(Path(folder).iterdir())
        run(sys.executable, '-m', 'twine', 'check', '--strict', *files)
        output.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.move(file, output / file.name)
    [wheel] = [output / file.name for file in files if file.suffix == '.whl']
    return wheel


def install(folder: Path, *requirements: Any) -> Path:
    """Make an environment if there is none, install into it, and return its Python."""
    python = folder / ('Scripts/python.exe' if sys.platform == 'win32' else 'bin/python')
    if not python.exists():
        venv.create(folder, with_pip=True)
    run(python, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', *requirements)
    run(python, '-m', 'pip', 'check', '--disable-pip-version-check')
    return python


def licenses(python: Path) -> List[Dict[str, str]]:
    """Name, version and license of every distribution in an environment."""
    listed = run(
        sys.executable, '-m', 'piplicenses', f'--python={python}', '--from=mixed', '--format=json', '--with-urls')
    return sorted(json.loads(listed), key=lambda row: row['Name'].lower())


def write_licenses(rows: List[Dict[str, str]], file: Path) -> None:
    """Write the licenses as a table; refuse those that reach over to a user's code."""
    refused = [f'{row["Name"]} ({row["License"]})' for row in rows if REFUSED.search(row['License'])]
    if refused:
        raise ReleaseError(f'{", ".join(refused)} would come along, expected no strong copyleft: leave it out.')
    lines = ['| distribution | version | license |', '| --- | --- | --- |']
    lines += [f'| {row["Name"]} | {row["Version"]} | {" ".join(row["License"].split())} |' for row in rows]
    unknown = [row['Name'] for row in rows if row['License'] == 'UNKNOWN']
    if unknown:
        lines += ['', f'Without a license in what they say of themselves: {", ".join(unknown)}.']
    file.write_text('\n'.join(lines) + '\n', encoding='utf-8')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', type=Path, default=ROOT / 'dist', help='folder for what is built')
    args = parser.parse_args()
    try:
        version = check_version()
        print(f'version {version}: package, changelog and citation agree', flush=True)
        print(f'address of the repository: {check_address()}', flush=True)
        wheel = build(args.output.resolve())
        print(f'built {wheel.name} ({wheel.stat().st_size / 1e6:.1f} MB) and its sdist, metadata is whole', flush=True)
        with tempfile.TemporaryDirectory() as folder:
            smoke = shutil.copy(ROOT / 'scripts' / 'smoke.py', folder)  # a copy has no checkout around it
            empty = Path(folder, 'empty')
            empty.mkdir()
            for name, requirements in (('newest', []), ('lowest', ['-c', ROOT / 'tests' / 'lower-bounds.txt'])):
                python = install(Path(folder, name), wheel, *requirements)
                said = run(python, '-I', smoke, version, cwd=empty)
                if any(empty.iterdir()):
                    raise ReleaseError(f'The package wrote {[*empty.iterdir()]} where it was used: find what does.')
                print(f'{name} versions, in an empty environment without a network:\n{said}', end='', flush=True)
                if name == 'lowest':
                    shutil.rmtree(python.parents[1])
            python = install(Path(folder, 'newest'), f'{wheel}[{EXTRAS}]')
            write_licenses(licenses(python), args.output / 'licenses.md')
            print(f'licenses of all that comes with the extras {EXTRAS}: {args.output / "licenses.md"}')
    except ReleaseError as error:
        sys.exit(str(error))


if __name__ == '__main__':
    main()
