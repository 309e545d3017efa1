"""What `make release-check` says of a release that is not whole, without the minutes that it takes."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import release_check
import smoke


def test_package_changelog_and_citation_have_one_version():
    assert re.fullmatch(r'\d+\.\d+\.\d+', release_check.check_version())


def test_lower_bounds_are_those_that_are_tested():
    """What pyproject.toml says of the package and of these extras, tests/lower-bounds.txt pins."""
    lines = (release_check.ROOT / 'tests' / 'lower-bounds.txt').read_text().splitlines()
    pins = {r.name.replace('_', '-'): r.specifier for r in map(Requirement, filter(re.compile(r'\w').match, lines))}
    for extra in ('', 'completion', 'demo', 'frequency', 'jpeg', 'detection', 'segmentation', 'notebook'):
        for requirement in map(Requirement, requires('mlfm-zoo')):
            if requirement.specifier and (requirement.marker is None or requirement.marker.evaluate({'extra': extra})):
                [bound], [pin] = requirement.specifier, pins[requirement.name.replace('_', '-')]
                assert (bound.operator, pin.operator) == ('>=', '==')
                assert Version(bound.version) == Version(pin.version), requirement.name


def test_versions_that_differ_are_told(tmp_path, monkeypatch):
    (tmp_path / 'mlfm_zoo').mkdir()
    for name in ('mlfm_zoo/__init__.py', 'CHANGELOG.md', 'CITATION.cff'):
        shutil.copy(release_check.ROOT / name, tmp_path / name)
    monkeypatch.setattr(release_check, 'ROOT', tmp_path)
    release_check.check_version()
    for file, old in (('CITATION.cff', 'date-released: '), ('CHANGELOG.md', '## ['), ('mlfm_zoo/__init__.py', " = '")):
        text = (tmp_path / file).read_text()
        (tmp_path / file).write_text(re.sub(rf'{re.escape(old)}(?=\d)', f'{old}9', text, count=1))
        with pytest.raises(release_check.ReleaseError, match='expected the same version and date'):
            release_check.check_version()
        (tmp_path / file).write_text(text)


def test_addresses_that_differ_are_told(tmp_path, monkeypatch):
    """A maintainer writes the address of the repository into three files."""
    assert release_check.check_address()
    texts = {'pyproject.toml': '# Repository = "ADDRESS"\n', 'mkdocs.yml': 'repo_url:  # address\n',
             'README.md': 'git clone ADDRESS mlfm_zoo && cd mlfm_zoo\n'}
    monkeypatch.setattr(release_check, 'ROOT', tmp_path)
    for file, text in texts.items():
        (tmp_path / file).write_text(text)
    assert release_check.check_address() == 'ADDRESS'
    filled = {'pyproject.toml': 'Repository = "https://a/b"\n', 'mkdocs.yml': 'repo_url: https://a/b  # address\n',
              'README.md': 'git clone https://a/b mlfm_zoo && cd mlfm_zoo\n'}
    for file in [*filled][:2]:
        (tmp_path / file).write_text(filled[file])
        with pytest.raises(release_check.ReleaseError, match='different addresses'):
            release_check.check_address()
    (tmp_path / 'README.md').write_text(filled['README.md'])
    assert release_check.check_address() == 'https://a/b'


@pytest.mark.parametrize('license, taken', [
    ('MIT License', True), ('GNU Lesser General Public License v3 (LGPLv3)', True), ('UNKNOWN', True),
    ('GPL-3.0-or-later', False), ('AGPLv3', False), ('GNU Affero General Public License v3', False),
])
def test_strong_copyleft_is_refused(license, taken, tmp_path):
    rows, file = [{'Name': 'something', 'Version': '1', 'License': license}], tmp_path / 'licenses.md'
    if taken:
        release_check.write_licenses(rows, file)
        assert f'| something | 1 | {license} |' in file.read_text()
        assert ('say of themselves: something.' in file.read_text()) == (license == 'UNKNOWN')
    else:
        with pytest.raises(release_check.ReleaseError, match=r'^something \('):
            release_check.write_licenses(rows, file)


def test_installed_distributions_have_licenses():
    rows = {row['Name'].lower(): row['License'] for row in release_check.licenses(sys.executable)}
    assert 'Apache' in rows['timm'] and 'BSD' in rows['torch']


def test_network_is_refused():
    code = 'import socket, sys, smoke; sys.addaudithook(smoke.refuse_network); socket.getaddrinfo("localhost", 80)'
    ran = subprocess.run(
        [sys.executable, '-c', code], cwd=smoke.__file__.rpartition('/')[0], capture_output=True, text=True)
    assert ran.returncode == 1 and ran.stderr.startswith('Something reached for the network')
