"""A small Hugging Face Hub on 127.0.0.1, for the real huggingface_hub client.

Model repositories live in memory. The client reads HF_ENDPOINT when it is imported, so it runs in a subprocess:

    with HubServer() as server, Client(server.endpoint, tmp_path, token=TOKEN) as client:
        sha = server.add_repo('org/name', {'config.json': b'{}'})
        path = client('hub.hf_hub_download("org/name", "config.json")')

Xet storage is not offered, so downloads are plain HTTP with hf_xet installed as well. For uploads the client never
asks: from version 1.0 on it sends every LFS file through hf_xet if that is importable. Hence `environment` sets
HF_HUB_DISABLE_XET=1; without that variable use `HubServer(lfs_threshold=None)`, where every file is plain.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ['FAULTS', 'TOKEN', 'Client', 'ClientError', 'HubServer', 'environment']

TOKEN = 'hf_token_of_the_tests'
USER = 'tester'
FAULTS = ('cut', 'wrong_bytes', 'short', 'truncated', 'error_500')
DATE = '2024-01-01T00:00:00.000Z'
# What the Hub puts into the first commit of a repository.
GIT_ATTRIBUTES = b'*.safetensors filter=lfs diff=lfs merge=lfs -text\n'


def environment(endpoint: str, home: str | os.PathLike, token: str | None = None, offline: bool = False) -> dict:
    """The environment of a subprocess whose Hub is `endpoint` and whose caches lie in `home`.

    Args:
        endpoint: Address of the server.
        home: Folder for the caches of huggingface_hub.
        token: Access token, `TOKEN` for one that the server accepts; None for an anonymous client.
        offline: Whether the client may only read its cache.

    Returns:
        A whole environment, made from this process's without its proxies and its Hub settings.
    """
    dropped = re.compile(r'HF_|HUGGING|TRANSFORMERS_OFFLINE|.*_PROXY$', re.IGNORECASE)
    env = {name: value for name, value in os.environ.items() if not dropped.match(name)}
    env |= {
        'HF_ENDPOINT': endpoint,
        'HF_HOME': os.fspath(home),
        'HF_HUB_DISABLE_PROGRESS_BARS': '1',
        'HF_HUB_DISABLE_TELEMETRY': '1',
        'HF_HUB_DISABLE_XET': '1',
    }
    if token is not None:
        env['HF_TOKEN'] = token
    if offline:
        env['HF_HUB_OFFLINE'] = '1'
    return env


class ClientError(Exception):
    """An error in the subprocess of a `Client`.

    Args:
        kinds: Names of the error's class and of its base classes.
        message: What it says.
    """

    def __init__(self, kinds: list[str], message: str):
        super().__init__(f'{kinds[0]}: {message}')
        self.kinds = kinds


class Client:
    """A Python process with huggingface_hub imported as `hub`.

    Each call takes an expression, or statements that assign to `result`, and returns the value as JSON tells it.
    Names last from one call to the next.

    Args:
        endpoint: Address of the server.
        home: Folder for the caches of huggingface_hub.
        token: See `environment`.
        offline: See `environment`.
        env: Further variables; None as a value removes one.
    """

    LOOP = '\n'.join([
        'import json, sys',
        'import huggingface_hub as hub',
        # What the code prints must not mix with the answers.
        'answers, sys.stdout = sys.stdout, sys.stderr',
        'names = {"hub": hub}',
        'for line in sys.stdin:',
        '    names["result"] = None',
        '    try:',
        '        code = json.loads(line)',
        '        try:',
        '            compiled = compile(code, "<client>", "eval")',
        '        except SyntaxError:',
        '            exec(compile(code, "<client>", "exec"), names)',
        '        else:',
        '            names["result"] = eval(compiled, names)',
        '        answer = {"value": names["result"]}',
        '    except (Exception, SystemExit) as error:',
        '        answer = {"kinds": [kind.__name__ for kind in type(error).__mro__], "message": str(error)}',
        '    print(json.dumps(answer, default=str), file=answers, flush=True)',
    ])

    def __init__(self, endpoint: str, home: str | os.PathLike, token: str | None = None, offline: bool = False,
                 env: dict[str, str | None] | None = None):
        env = environment(endpoint, home, token, offline) | (env or {})
        self.process = subprocess.Popen(
            [sys.executable, '-c', self.LOOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={name: value for name, value in env.items() if value is not None})

    def start(self, code: str) -> None:
        """Begins a call without waiting for its end."""
        self.process.stdin.write(json.dumps(code) + '\n')
        self.process.stdin.flush()

    def __call__(self, code: str) -> Any:
        """Runs code and returns its value; raises `ClientError` for an error there."""
        self.start(code)
        return self.wait()

    def wait(self) -> Any:
        """Waits for the end of the call that was started and returns its value, or raises `ClientError`."""
        line = self.process.stdout.readline()
        if not line:
            raise EOFError(f'the client ended with {self.process.wait()}')
        answer = json.loads(line)
        if 'kinds' in answer:
            raise ClientError(answer['kinds'], answer['message'])
        return answer['value']

    def kill(self) -> None:
        """Ends the process at once, in the middle of a call as well."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> 'Client':
        return self

    def __exit__(self, *_) -> None:
        self.kill()
        self.process.stdin.close()
        self.process.stdout.close()


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pointer(content: bytes) -> bytes:
    """What git holds in place of an LFS file."""
    return f'version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(content)}\nsize {len(content)}\n'.encode()


@dataclass
class Repo:
    """A repository: its revisions, oldest first, and the LFS files uploaded to it, committed or not."""

    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    main: str = ''
    lfs: dict[str, bytes] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        # The count makes an unchanged tree a commit of its own, as time does in git.
        content = [self.name, len(self.commits), self.main, sorted((k, sha256(v)) for k, v in files.items())]
        self.main = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        self.commits[self.main] = dict(files)
        return self.main


class HubError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.headers = {'X-Error-Message': message, **({'X-Error-Code': code} if code else {}), **(headers or {})}


class HubServer:
    """The server; as a context manager it runs in a thread.

    Attributes:
        endpoint: Its address.
        requests: Method, path without query, and Range header (or None) of each request, in order of arrival.
        repos: The repositories by id.
        connections: How many connections are open.
        errors: Tracebacks of errors in the server itself; the client gets these as 400.
        fault: None, or what is wrong with reading:
            'cut': a file's GET sends half of its body, then closes the connection.
            'wrong_bytes': a file has the right size and one wrong byte in its middle.
            'short': a file's GET sends half of the file as if that were all, while its HEAD tells the true size.
            'truncated': the same, and HEAD tells the size of that half; so the client sees nothing wrong.
            'error_500': all reading of a repository is answered with 500. With `Retry-After: 0`, so that versions of
            the client that retry do so each second.
        fault_files: Pattern of the files that are at fault; for 'error_500' the repository's API counts as ''.
        fault_times: How many responses are at fault before all is well again; None for all. HEAD counts too, where
            the fault shows in it. Set it after `fault`, which sets it to None.
        cut_upload_after: N makes the N-th write (LFS PUT or commit) from now on fail: its connection is closed once
            the body is read, and nothing of it is kept. Setting it, also to None, restarts the count.
        cut_upload_times: How many writes fail from that one on; None for all. The client repeats a failed PUT, so
            that one failure is not the end of an upload.

    Args:
        lfs_threshold: Size in bytes from which a file is an LFS file, as are all *.safetensors; None for no LFS.
    """

    def __init__(self, lfs_threshold: int | None = 1 << 20):
        self.lfs_threshold = lfs_threshold
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.errors: list[str] = []
        self.lock = threading.RLock()
        self.connections = 0
        self.fault = None
        self.fault_files = '*'
        self.cut_upload_after = None
        self.cut_upload_times: int | None = 1
        self.http = Listener(self)
        self.endpoint = f'http://127.0.0.1:{self.http.server_port}'

    def __enter__(self) -> 'HubServer':
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={'poll_interval': 0.05}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    @property
    def fault(self) -> str | None:
        return self._fault

    @fault.setter
    def fault(self, fault: str | None) -> None:
        if fault is not None and fault not in FAULTS:
            raise ValueError(f'{fault!r} is none of {FAULTS}')
        self._fault, self.fault_times = fault, None

    @property
    def cut_upload_after(self) -> int | None:
        return self._cut_upload_after

    @cut_upload_after.setter
    def cut_upload_after(self, number: int | None) -> None:
        self._cut_upload_after, self._writes = number, 0

    def clear(self) -> None:
        """Forgets the requests seen so far."""
        self.requests.clear()

    def add_repo(self, repo_id: str, files: dict[str, bytes], private: bool = False) -> str:
        """Creates a repository of exactly these files and returns its commit."""
        with self.lock:
            if repo_id in self.repos:
                raise ValueError(f'{repo_id} is there already')
            self.repos[repo_id] = Repo(repo_id, private)
            return self.repos[repo_id].commit(files)

    def commit(self, repo_id: str, files: dict[str, bytes | None]) -> str:
        """Adds or replaces files on main, or deletes those given as None, and returns the new commit."""
        with self.lock:
            merged = self.files(repo_id) | files
            return self.repos[repo_id].commit({path: merged[path] for path in merged if merged[path] is not None})

    def files(self, repo_id: str, revision: str = 'main') -> dict[str, bytes]:
        """The files of a revision."""
        repo = self.repos[repo_id]
        return dict(repo.commits[repo.main if revision == 'main' else revision])

    def remove_repo(self, repo_id: str) -> None:
        """Deletes a repository."""
        del self.repos[repo_id]

    def gate(self, repo_id: str, gated: bool = True) -> None:
        """Makes a repository gated: all may list it, but its files are for those with a token."""
        self.repos[repo_id].gated = gated

    def is_lfs(self, path: str, size: int) -> bool:
        # The client never uploads an empty file as LFS.
        if self.lfs_threshold is None or size == 0:
            return False
        return size >= self.lfs_threshold or path.endswith('.safetensors')

    def take_fault(self, path: str, *faults: str) -> str | None:
        """The fault to commit for this file, if it is one of these; counts it."""
        with self.lock:
            if self.fault not in faults or self.fault_times == 0 or not fnmatch(path, self.fault_files):
                return None
            if self.fault_times is not None:
                self.fault_times -= 1
            return self.fault

    def cuts_this_write(self) -> bool:
        with self.lock:
            self._writes += 1
            if self._cut_upload_after is None:
                return False
            over = self._writes - self._cut_upload_after
            return over >= 0 and (self.cut_upload_times is None or over < self.cut_upload_times)


class Listener(ThreadingHTTPServer):
    # The client opens many connections at once; those over the default of 5 would wait for a second.
    request_queue_size = 64

    def __init__(self, hub: HubServer):
        super().__init__(('127.0.0.1', 0), Handler)
        self.hub = hub


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = 'HTTP/1.1'
    # Headers and body go out in two writes; with Nagle's algorithm each answer would take 40 ms.
    disable_nagle_algorithm = True

    def log_message(self, *_) -> None:
        pass

    def handle(self) -> None:
        with self.hub.lock:
            self.hub.connections += 1
        try:
            # A client that is gone is none of our errors.
            with contextlib.suppress(ConnectionError):
                super().handle()
        finally:
            with self.hub.lock:
                self.hub.connections -= 1

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def dispatch(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        self.hub.requests.append((self.command, url.path, self.headers.get('Range')))
        try:
            self.body = b''.join(self.read_body())
            for methods, pattern, action in ROUTES:
                match = re.fullmatch(pattern, url.path)
                if match and self.command in methods:
                    action(self, *[None if group is None else unquote(group) for group in match.groups()])
                    return
            raise HubError(501, f'{self.command} {url.path} is not part of the Hub of the tests')
        except HubError as error:
            self.answer({'error': str(error)}, error.status, error.headers)
        except ConnectionError:
            raise
        except Exception:
            # As 5xx the client would repeat it for half a minute.
            self.hub.errors.append(traceback.format_exc())
            self.answer({'error': self.hub.errors[-1]}, 400)

    do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = dispatch

    def read_body(self) -> Iterator[bytes]:
        if self.headers.get('Transfer-Encoding', '').lower() != 'chunked':
            yield self.rfile.read(int(self.headers.get('Content-Length', 0)))
            return
        while size := int(self.rfile.readline().split(b';')[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None,
               sent: int | None = None) -> None:
        """Sends an answer: bytes, or what becomes JSON. With `sent`, closes the connection after so many bytes."""
        kind = 'application/octet-stream'
        if not isinstance(content, bytes):
            content, kind = json.dumps(content).encode(), 'application/json; charset=utf-8'
        self.send_response(status)
        for name, value in {'Content-Type': kind, 'Content-Length': str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(content[:sent])
        if sent is not None:
            self.close_connection = True

    def has_token(self) -> bool:
        """Whether the request bears the token; a wrong one is refused anywhere, as by the Hub."""
        given = self.headers.get('Authorization')
        if given not in (None, f'Bearer {TOKEN}'):
            raise HubError(401, 'Invalid credentials in Authorization header')
        return given is not None

    def check_reading(self, path: str = '') -> None:
        if self.hub.take_fault(path, 'error_500'):
            raise HubError(500, 'Internal Error', headers={'Retry-After': '0'})

    def repo(self, repo_id: str, write: bool = False) -> Repo:
        token = self.has_token()
        repo = self.hub.repos.get(repo_id)
        if repo is None or repo.private and not token:
            raise HubError(404, 'Repository not found', 'RepoNotFound')
        if write and not token:
            raise HubError(401, 'Invalid username or password.')
        return repo

    def revision(self, repo: Repo, revision: str) -> str:
        sha = repo.main if revision == 'main' else revision
        if sha not in repo.commits:
            raise HubError(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        return sha

    # Account

    def whoami(self) -> None:
        if not self.has_token():
            raise HubError(401, 'Invalid username or password.')
        token = {'displayName': 'tests', 'role': 'write'}
        self.answer({'type': 'user', 'id': USER, 'name': USER, 'fullname': USER, 'email': None, 'orgs': [],
                     'auth': {'type': 'access_token', 'accessToken': token}})

    def validate_yaml(self) -> None:
        self.answer({'errors': [], 'warnings': []})

    def agent_harnesses(self) -> None:
        # Asked for by clients whose telemetry is on.
        self.answer({'standardEnvVars': [], 'harnesses': {}})

    # Repositories

    def create(self) -> None:
        if not self.has_token():
            raise HubError(401, 'Invalid username or password.')
        wanted = json.loads(self.body)
        if wanted.get('type', 'model') != 'model':
            raise HubError(400, 'Only model repositories are supported')
        repo_id = f'{wanted.get("organization") or USER}/{wanted["name"]}'
        content = {'url': f'{self.hub.endpoint}/{repo_id}', 'name': repo_id, 'id': repo_id}
        # Version 0.25 says `private`, later ones `visibility`.
        private = bool(wanted.get('private')) or wanted.get('visibility') == 'private'
        with self.hub.lock:
            if repo_id in self.hub.repos:
                message = 'You already created this model repo'
                self.answer(content | {'error': message}, 409, {'X-Error-Message': message})
                return
            self.hub.add_repo(repo_id, {'.gitattributes': GIT_ATTRIBUTES}, private)
        self.answer(content)

    def info(self, repo_id: str, revision: str | None) -> None:
        self.check_reading()
        repo = self.repo(repo_id)
        sha = self.revision(repo, revision or 'main')
        siblings = []
        for path, content in sorted(repo.commits[sha].items()):
            sibling = {'rfilename': path}
            if self.query.get('blobs', '').lower() == 'true':
                entry = self.entry(path, content)
                sibling |= {'size': entry['size'], 'blobId': entry['oid']}
                if 'lfs' in entry:
                    sibling['lfs'] = entry['lfs'] | {'sha256': entry['lfs']['oid']}
            siblings.append(sibling)
        self.answer({
            '_id': hashlib.sha1(repo_id.encode()).hexdigest()[:24], 'id': repo_id, 'modelId': repo_id,
            'author': repo_id.split('/')[0], 'sha': sha, 'createdAt': DATE, 'lastModified': DATE,
            'private': repo.private, 'gated': 'auto' if repo.gated else False, 'disabled': False,
            'downloads': 0, 'likes': 0, 'tags': [], 'siblings': siblings,
        })

    def entry(self, path: str, content: bytes) -> dict[str, Any]:
        entry = {'type': 'file', 'path': path, 'size': len(content)}
        if not self.hub.is_lfs(path, len(content)):
            return entry | {'oid': git_oid(content)}
        text = pointer(content)
        lfs = {'oid': sha256(content), 'size': len(content), 'pointerSize': len(text)}
        return entry | {'oid': git_oid(text), 'lfs': lfs}

    def tree(self, repo_id: str, revision: str, folder: str | None) -> None:
        self.check_reading()
        repo = self.repo(repo_id)
        sha = self.revision(repo, revision)
        prefix = f'{folder.strip("/")}/' if folder else ''
        entries, folders = [], set()
        for path, content in sorted(repo.commits[sha].items()):
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix):].split('/')
            folders |= {prefix + '/'.join(parts[:depth]) for depth in range(1, len(parts))}
            entries.append(self.entry(path, content))
        if prefix and not entries:
            raise HubError(404, f'{folder} does not exist on "{revision}"', 'EntryNotFound')
        entries = [{'type': 'directory', 'path': path, 'size': 0, 'oid': git_oid(path.encode())}
                   for path in sorted(folders)] + entries
        if self.query.get('recursive', '').lower() != 'true':
            entries = [entry for entry in entries if '/' not in entry['path'][len(prefix):]]
        self.answer(entries)

    # Uploads

    def branch(self, repo_id: str, revision: str) -> Repo:
        """The repository for a write to a branch."""
        repo = self.repo(repo_id, write=True)
        if self.query.get('create_pr'):
            raise HubError(400, 'The Hub of the tests has no pull requests')
        if revision != 'main':
            raise HubError(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        return repo

    def preupload(self, repo_id: str, revision: str) -> None:
        files = self.branch(repo_id, revision).commits[self.hub.repos[repo_id].main]
        modes = []
        for wanted in json.loads(self.body)['files']:
            lfs = self.hub.is_lfs(wanted['path'], wanted['size'])
            mode = {'path': wanted['path'], 'uploadMode': 'lfs' if lfs else 'regular', 'shouldIgnore': False}
            if wanted['path'] in files:
                entry = self.entry(wanted['path'], files[wanted['path']])
                mode['oid'] = entry.get('lfs', entry)['oid']
            modes.append(mode)
        self.answer({'files': modes})

    def lfs_batch(self, repo_id: str) -> None:
        repo = self.repo(repo_id, write=True)
        objects = []
        for wanted in json.loads(self.body)['objects']:
            described = {'oid': wanted['oid'], 'size': wanted['size'], 'authenticated': True}
            if wanted['oid'] not in repo.lfs:
                described['actions'] = {
                    'upload': {'href': f'{self.hub.endpoint}/{repo_id}.git/lfs/{wanted["oid"]}'},
                    'verify': {'href': f'{self.hub.endpoint}/{repo_id}.git/info/lfs/verify'},
                }
            objects.append(described)
        self.answer({'transfer': 'basic', 'objects': objects})

    def lfs_put(self, repo_id: str, oid: str) -> None:
        # Stands for a signed address in a bucket: the client sends no token.
        if self.hub.cuts_this_write():
            self.close_connection = True
            return
        repo = self.hub.repos.get(repo_id)
        if repo is None or sha256(self.body) != oid:
            raise HubError(400, 'These are not the bytes of this object')
        repo.lfs[oid] = self.body
        self.answer(b'')

    def lfs_verify(self, repo_id: str) -> None:
        repo, wanted = self.repo(repo_id, write=True), json.loads(self.body)
        if len(repo.lfs.get(wanted['oid'], b'')) != wanted['size']:
            raise HubError(404, 'Object does not exist or has another size')
        self.answer({'message': 'ok'})

    def commit(self, repo_id: str, revision: str) -> None:
        if self.hub.cuts_this_write():
            self.close_connection = True
            return
        repo = self.branch(repo_id, revision)
        with self.hub.lock:
            files = dict(repo.commits[repo.main])
            for line in self.body.splitlines():
                operation = json.loads(line)
                key, value = operation['key'], operation['value']
                if key == 'header':
                    if value.get('parentCommit', repo.main) != repo.main:
                        raise HubError(412, 'A commit has happened since. Please refresh and try again.')
                elif key == 'file':
                    files[value['path']] = base64.b64decode(value['content'], validate=True)
                elif key == 'lfsFile':
                    if value['oid'] not in repo.lfs:
                        raise HubError(400, f'The LFS object of {value["path"]} was not uploaded')
                    files[value['path']] = repo.lfs[value['oid']]
                elif key in ('deletedFile', 'deletedFolder'):
                    folder = value['path'].rstrip('/') + '/'
                    gone = [path for path in files if path == value['path'] or path.startswith(folder)]
                    if not gone or (key == 'deletedFile') != (value['path'] in gone):
                        raise HubError(404, "A file with this name doesn't exist", 'EntryNotFound')
                    for path in gone:
                        del files[path]
                else:
                    raise HubError(400, f'{key} is no operation of the Hub of the tests')
            sha = repo.commit(files)
        url = f'{self.hub.endpoint}/{repo_id}/commit/{sha}'
        self.answer({'success': True, 'commitOid': sha, 'commitUrl': url, 'hookOutput': ''})

    def xet_token(self, repo_id: str, kind: str, revision: str) -> None:
        # hf_xet repeats a request that fails with 5xx.
        raise HubError(403, 'The Hub of the tests has no Xet storage: set HF_HUB_DISABLE_XET=1')

    # Downloads

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        self.check_reading(path)
        repo = self.repo(repo_id)
        if repo.gated and not self.has_token():
            raise HubError(403, f'Access to model {repo_id} is restricted.', 'GatedRepo')
        sha = self.revision(repo, revision)
        headers = {'X-Repo-Commit': sha}
        if path not in repo.commits[sha]:
            raise HubError(404, 'Entry not found', 'EntryNotFound', headers)
        content = repo.commits[sha][path]
        lfs = self.hub.is_lfs(path, len(content))
        headers |= {'Accept-Ranges': 'bytes', 'ETag': f'"{sha256(content) if lfs else git_oid(content)}"'}

        reading = self.command == 'GET'
        fault = self.hub.take_fault(path, 'truncated', *(('cut', 'wrong_bytes', 'short') if reading else ()))
        half = len(content) // 2
        if fault in ('short', 'truncated'):
            content = content[:half]
        elif fault == 'wrong_bytes' and content:
            content = content[:half] + bytes([content[half] ^ 255]) + content[half + 1:]
        if lfs:
            headers |= {'X-Linked-Etag': headers['ETag'], 'X-Linked-Size': str(len(content))}

        status, size = 200, len(content)
        if reading and (wanted := self.headers.get('Range')):
            start, stop = self.range(wanted, size)
            status, content = 206, content[start:stop]
            headers['Content-Range'] = f'bytes {start}-{stop - 1}/{size}'
        self.answer(content, status, headers, sent=len(content) // 2 if fault == 'cut' else None)

    def range(self, wanted: str, size: int) -> tuple[int, int]:
        """Start and end, past the last byte, of a Range header."""
        match = re.fullmatch(r'bytes=(\d*)-(\d*)', wanted.replace(' ', ''))
        first, last = match.groups() if match else ('', '')
        if first:
            start, stop = int(first), min(int(last) + 1 if last else size, size)
        else:
            start, stop = (max(size - int(last), 0) if last else size), size
        if start >= stop:
            raise HubError(416, f'Range {wanted} of {size} bytes', headers={'Content-Range': f'bytes */{size}'})
        return start, stop


REPO = r'([^/]+(?:/[^/]+)?)'
# The first that fits is taken; paths are still quoted, so a revision has no slash.
ROUTES = [
    (('GET',), r'/api/whoami-v2', Handler.whoami),
    (('GET',), r'/api/agent-harnesses', Handler.agent_harnesses),
    (('POST',), r'/api/validate-yaml', Handler.validate_yaml),
    (('POST',), r'/api/repos/create', Handler.create),
    (('GET',), rf'/api/models/{REPO}/tree/([^/]+)(?:/(.+))?', Handler.tree),
    (('GET',), rf'/api/models/{REPO}/xet-(read|write)-token/([^/]+)', Handler.xet_token),
    (('POST',), rf'/api/models/{REPO}/preupload/([^/]+)', Handler.preupload),
    (('POST',), rf'/api/models/{REPO}/commit/([^/]+)', Handler.commit),
    (('GET',), rf'/api/models/{REPO}(?:/revision/([^/]+))?', Handler.info),
    (('POST',), rf'/{REPO}\.git/info/lfs/objects/batch', Handler.lfs_batch),
    (('POST',), rf'/{REPO}\.git/info/lfs/verify', Handler.lfs_verify),
    (('PUT',), rf'/{REPO}\.git/lfs/([0-9a-f]{{64}})', Handler.lfs_put),
    (('GET', 'HEAD'), rf'/{REPO}/resolve/([^/]+)/(.+)', Handler.resolve),
]
