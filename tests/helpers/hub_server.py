"""A plain Hugging Face Hub on 127.0.0.1 for the real huggingface_hub client: downloads, uploads and simple faults.

Model repositories are kept in memory. The client takes its endpoint from HF_ENDPOINT when it is imported: a subprocess
gets it from `environment`, and a test's own process from `point_client_at`.
"""

import base64
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants

from helpers.loopback import LoopbackServer

TOKEN = 'hf_token_of_the_tests'


def environment(endpoint, home, token=None, offline=False):
    """The environment of a subprocess whose Hub is `endpoint` and whose caches are in `home`.

    It is this process's own, without proxies and Hub settings.
    """
    dropped = re.compile(r'HF_|HUGGING|TRANSFORMERS_OFFLINE|.*_PROXY$', re.IGNORECASE)
    env = {name: value for name, value in os.environ.items() if not dropped.match(name)}
    env |= {
        'HF_ENDPOINT': endpoint, 'HF_HOME': os.fspath(home), 'HF_HUB_DISABLE_PROGRESS_BARS': '1',
        'HF_HUB_DISABLE_TELEMETRY': '1', 'HF_HUB_DISABLE_XET': '1'}
    if token is not None:
        env['HF_TOKEN'] = token
    if offline:
        env['HF_HUB_OFFLINE'] = '1'
    return env


def point_client_at(monkeypatch, endpoint):
    """Let the Hub client of this process talk to `endpoint`, and not sleep before it tries again."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, 'ENDPOINT', endpoint)
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_TELEMETRY', True)
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', endpoint + template)
    monkeypatch.setattr('time.sleep', lambda seconds: None)
    monkeypatch.setenv('HF_TOKEN', TOKEN)  # before one of the developer's own


def git_oid(content):
    """The id that git gives a file's content."""
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


@dataclass
class Repo:
    """A repository: the files of each of its commits, and the latest commit."""
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    main: str = ''

    def commit(self, files):
        """Make these files the latest commit; the same files have the same id."""
        self.main = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[self.main] = dict(files)
        return self.main


class HubServer(LoopbackServer):
    """The server.

    Attributes:
        repos: The repositories by id.
        requests: Method and path of each request.
        fault: None, or what is wrong with downloads: 'cut' closes the connection before the body, 'wrong_bytes' changes
            a byte, 'short' sends half as if it were all, 'truncated' says so in the answer to HEAD too, 'error_500' is
            the status of every answer.
        cut_uploads: Whether the connection is closed in the place of a commit.
    """

    def __init__(self):
        super().__init__(Handler)
        self.repos = {}
        self.requests = []
        self.fault = None
        self.cut_uploads = False

    def clear(self):
        self.requests.clear()

    def add_repo(self, repo_id, files):
        """Create a repository of these files and return its commit."""
        self.repos[repo_id] = Repo()
        return self.repos[repo_id].commit(files)

    def commit(self, repo_id, files):
        """Add or replace files and return the new commit."""
        return self.repos[repo_id].commit(self.files(repo_id) | files)

    def files(self, repo_id):
        """The files of the latest commit."""
        return dict(self.repos[repo_id].commits[self.repos[repo_id].main])


class HubError(Exception):
    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status = status
        self.headers = {'X-Error-Message': message} | ({'X-Error-Code': code} if code else {})


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True  # headers and body go out in two writes, which would take 40 ms

    def log_message(self, *_):
        pass

    def dispatch(self):
        path = urlsplit(self.path).path
        self.server.requests.append((self.command, path))
        body = self.read_body()
        try:
            if self.command == 'POST' and self.headers.get('Authorization') != f'Bearer {TOKEN}':
                raise HubError(401, 'Invalid credentials in Authorization header')
            for method, pattern, action in ROUTES:
                if self.command in method.split() and (match := re.fullmatch(pattern, path)):
                    return action(self, body, *map(unquote, match.groups()))
            raise HubError(404, f'{self.command} {path} is not part of the Hub of the tests')
        except HubError as error:
            self.answer({'error': str(error)}, error.status, error.headers)

    do_GET = do_HEAD = do_POST = dispatch

    def read_body(self):
        if self.headers.get('Transfer-Encoding', '').lower() != 'chunked':
            return self.rfile.read(int(self.headers.get('Content-Length', 0)))
        body = b''
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, content, status=200, headers=None):
        """Send bytes, or what becomes JSON."""
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {'Content-Type': 'application/json'} | (headers or {})
        self.send_response(status)
        for name, value in ({'Content-Length': len(content)} | (headers or {})).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(content)

    def resolve(self, body, repo_id, revision, path):
        fault, repo = self.server.fault, self.server.repos.get(repo_id)
        if fault == 'error_500':
            raise HubError(500, 'Internal Error')
        if repo is None:
            raise HubError(404, 'Repository not found', 'RepoNotFound')
        if repo.gated:
            raise HubError(403, f'Access to model {repo_id} is restricted.', 'GatedRepo')
        sha = repo.main if revision == 'main' else revision
        if sha not in repo.commits:
            raise HubError(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        if path not in repo.commits[sha]:
            raise HubError(404, 'Entry not found', 'EntryNotFound')
        content = repo.commits[sha][path]
        # the Hub names files of weights, which are in LFS, by their SHA-256
        etag = hashlib.sha256(content).hexdigest() if path.endswith('.safetensors') else git_oid(content)
        half = len(content) // 2
        if fault == 'truncated' or fault == 'short' and self.command == 'GET':
            content = content[:half]
        elif fault == 'wrong_bytes':
            content = content[:half] + bytes([content[half] ^ 255]) + content[half + 1:]
        headers = {'X-Repo-Commit': sha, 'ETag': f'"{etag}"'}
        if fault == 'cut' and self.command == 'GET':
            self.close_connection = True
            return self.answer(b'', headers=headers | {'Content-Length': len(content)})
        self.answer(content, headers=headers)

    def create(self, body):
        wanted = json.loads(body)
        repo_id = f'{wanted.get("organization") or "tester"}/{wanted["name"]}'
        url = f'{self.server.endpoint}/{repo_id}'
        if repo_id in self.server.repos:
            return self.answer({'error': 'You already created this repo', 'url': url}, 409)
        self.server.add_repo(repo_id, {'.gitattributes': b''})
        self.answer({'url': url, 'name': repo_id})

    def validate_yaml(self, body):
        self.answer({'errors': [], 'warnings': []})

    def preupload(self, body, repo_id, revision):
        files = [{'path': file['path'], 'uploadMode': 'regular', 'shouldIgnore': False}
                 for file in json.loads(body)['files']]
        self.answer({'files': files})

    def commit(self, body, repo_id, revision):
        if self.server.cut_uploads:
            self.close_connection = True
            return
        operations = [json.loads(line) for line in body.splitlines()]
        sha = self.server.commit(repo_id, {
            operation['value']['path']: base64.b64decode(operation['value']['content'])
            for operation in operations if operation['key'] == 'file'})
        self.answer({'success': True, 'commitOid': sha, 'hookOutput': '',
                     'commitUrl': f'{self.server.endpoint}/{repo_id}/commit/{sha}'})


REPO = '([^/]+/[^/]+)'
ROUTES = [  # the first that fits is taken
    ('GET HEAD', rf'/{REPO}/resolve/([^/]+)/(.+)', Handler.resolve),
    ('POST', '/api/repos/create', Handler.create),
    ('POST', '/api/validate-yaml', Handler.validate_yaml),
    ('POST', rf'/api/models/{REPO}/preupload/([^/]+)', Handler.preupload),
    ('POST', rf'/api/models/{REPO}/commit/([^/]+)', Handler.commit),
]
