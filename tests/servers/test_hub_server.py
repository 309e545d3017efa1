"""The Hub of the tests, with the real huggingface_hub client."""

import hashlib
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from hub_server import TOKEN, Client, ClientError, HubServer

WEIGHTS = bytes(range(256)) * 8192  # 2 MiB
FILES = {'config.json': b'{"a": 1}', 'model.safetensors': WEIGHTS}
REPO = 'org/name'


@pytest.fixture
def server():
    with HubServer() as server:
        yield server
    assert not server.errors


@pytest.fixture
def client(server, tmp_path):
    with Client(server.endpoint, tmp_path / 'home', token=TOKEN) as client:
        yield client


def folder(root: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def download(client: Client, filename: str, **options) -> bytes:
    return Path(client(f'hub.hf_hub_download({REPO!r}, {filename!r}, **{options!r})')).read_bytes()


def methods(server: HubServer) -> list[str]:
    return [method for method, _, _ in server.requests]


def test_round_trip(server, client, tmp_path):
    assert client('hub.whoami()["name"]') == 'tester'
    url = client(f'hub.create_repo({REPO!r})')
    assert url == f'{server.endpoint}/{REPO}'
    assert client(f'hub.create_repo({REPO!r}, exist_ok=True).repo_id') == REPO
    with pytest.raises(ClientError) as error:
        client(f'hub.create_repo({REPO!r})')
    assert 'HfHubHTTPError' in error.value.kinds and '409' in str(error.value)

    source = folder(tmp_path / 'source', FILES | {'sub/notes.txt': b'', 'README.md': b'---\nlicense: mit\n---\n'})
    server.clear()
    first = client(f'hub.upload_folder(repo_id={REPO!r}, folder_path={str(source)!r}).oid')
    assert methods(server).count('PUT') == 1
    assert [path for _, path, _ in server.requests if '/commit/' in path] == [f'/api/models/{REPO}/commit/main']
    uploaded = {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob('*') if path.is_file()}
    assert server.files(REPO) == uploaded | {'.gitattributes': server.files(REPO)['.gitattributes']}

    names = sorted(server.files(REPO))
    assert sorted(client(f'hub.list_repo_files({REPO!r})')) == names
    assert client(f'[f.path for f in hub.list_repo_tree({REPO!r}) if not hasattr(f, "size")]') == ['sub']
    assert client(f'[f.path for f in hub.list_repo_tree({REPO!r}, "sub")]') == ['sub/notes.txt']
    info = client(
        f'info = hub.model_info({REPO!r}, files_metadata=True)\n'
        'result = [info.id, info.sha, {s.rfilename: [s.size, s.lfs and s.lfs.sha256] for s in info.siblings}]')
    assert info[:2] == [REPO, first] and sorted(info[2]) == names
    assert info[2]['model.safetensors'] == [len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest()]
    assert info[2]['config.json'] == [8, None]

    for revision in ('main', first):
        for path, content in FILES.items():
            assert download(client, path, revision=revision) == content

    # Uploading it again makes no commit; new content makes one, and leaves the old one as it was.
    assert client(f'hub.upload_folder(repo_id={REPO!r}, folder_path={str(source)!r}).oid') == first
    (source / 'config.json').write_bytes(b'{}')
    (source / 'sub/notes.txt').unlink()
    second = client(
        f'hub.upload_folder(repo_id={REPO!r}, folder_path={str(source)!r}, delete_patterns="sub/*").oid')
    assert second != first and 'sub/notes.txt' not in server.files(REPO)
    assert download(client, 'config.json') == b'{}'
    assert download(client, 'config.json', revision=first) == FILES['config.json']
    with pytest.raises(ClientError, match='412'):
        client(f'hub.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id={REPO!r}, parent_commit={first!r})')

    third = server.commit(REPO, {'config.json': b'[]', 'README.md': None})
    snapshot = Path(client(f'hub.snapshot_download({REPO!r})'))
    assert snapshot.name == third
    assert {path.name: path.read_bytes() for path in snapshot.iterdir()} == server.files(REPO)
    assert 'README.md' not in server.files(REPO)


def test_cached_files(server, client, tmp_path):
    sha = server.add_repo(REPO, FILES)
    for path in FILES:
        download(client, path)
    assert methods(server) == ['HEAD', 'GET'] * 2
    server.clear()
    download(client, 'config.json')
    assert methods(server) == ['HEAD']
    server.clear()
    download(client, 'config.json', revision=sha)
    assert methods(server) == []
    with Client(server.endpoint, tmp_path / 'home', offline=True) as offline:
        for path, content in FILES.items():
            assert download(offline, path) == content
        with pytest.raises(ClientError) as error:
            download(offline, 'other.json')
        assert 'LocalEntryNotFoundError' in error.value.kinds
    assert methods(server) == []


def test_errors(server, client, tmp_path):
    server.add_repo(REPO, FILES)

    def fails(who, code):
        with pytest.raises(ClientError) as error:
            who(code)
        return error.value.kinds[0], 'EntryNotFoundError' in error.value.kinds, str(error.value)

    assert fails(client, 'hub.hf_hub_download("org/none", "config.json")')[0] == 'RepositoryNotFoundError'
    assert fails(client, 'hub.model_info("org/none")')[0] == 'RepositoryNotFoundError'
    assert fails(client, 'hub.model_info("none")')[0] == 'RepositoryNotFoundError'
    for revision in ('other', '0' * 40):
        for code in (f'hub.hf_hub_download({REPO!r}, "config.json", revision={revision!r})',
                     f'hub.model_info({REPO!r}, revision={revision!r})',
                     f'hub.list_repo_files({REPO!r}, revision={revision!r})'):
            assert fails(client, code)[0] == 'RevisionNotFoundError'
    assert fails(client, f'hub.hf_hub_download({REPO!r}, "none.json")')[1]
    assert fails(client, f'list(hub.list_repo_tree({REPO!r}, "none"))')[1]
    assert fails(client, f'hub.delete_file("none", {REPO!r})')[1]
    assert not client(f'hub.file_exists({REPO!r}, "none.json")')

    with Client(server.endpoint, tmp_path / 'other', token=None) as anonymous:
        upload = f'hub.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id={REPO!r}, token=%r)'
        assert '401' in fails(anonymous, upload % False)[2]
        assert '401' in fails(anonymous, 'hub.create_repo("org/new", token=False)')[2]
        assert '401' in fails(anonymous, upload % 'hf_wrong')[2]
        assert '401' in fails(anonymous, 'hub.create_repo("org/new", token="hf_wrong")')[2]
        assert fails(anonymous, 'hub.whoami(token="hf_wrong")')[0] in ('HTTPError', 'HfHubHTTPError')
        assert '401' in fails(anonymous, f'hub.model_info({REPO!r}, token="hf_wrong")')[2]
        assert 'org/new' not in server.repos and server.files(REPO) == FILES

        server.gate(REPO)
        assert fails(anonymous, f'hub.hf_hub_download({REPO!r}, "config.json")')[0] == 'GatedRepoError'
        assert anonymous(f'hub.model_info({REPO!r}).gated') == 'auto'
        assert download(client, 'config.json') == FILES['config.json']

        server.add_repo('org/private', FILES, private=True)
        assert fails(anonymous, 'hub.hf_hub_download("org/private", "config.json")')[0] == 'RepositoryNotFoundError'
        assert client('hub.model_info("org/private").private')

    server.remove_repo(REPO)
    assert fails(client, f'hub.hf_hub_download({REPO!r}, "none.json")')[0] == 'RepositoryNotFoundError'


def test_wrong_bytes_and_sizes(server, client):
    server.add_repo(REPO, FILES)
    server.fault = 'wrong_bytes'
    wrong = download(client, 'model.safetensors')
    assert len(wrong) == len(WEIGHTS) and sum(a != b for a, b in zip(wrong, WEIGHTS)) == 1

    server.fault = 'short'
    with pytest.raises(ClientError, match='should be of size 2097152 but has size 1048576') as error:
        download(client, 'model.safetensors', force_download=True)
    assert 'OSError' in error.value.kinds

    server.fault = 'truncated'
    assert download(client, 'model.safetensors', force_download=True) == WEIGHTS[:len(WEIGHTS) // 2]

    server.fault_files = '*.safetensors'
    assert download(client, 'config.json') == FILES['config.json']
    server.fault = None
    assert download(client, 'model.safetensors', force_download=True) == WEIGHTS
    with pytest.raises(ValueError, match='none of'):
        server.fault = 'other'


def test_errors_of_the_server(server, client):
    server.add_repo(REPO, FILES)
    download(client, 'config.json')
    server.fault = 'error_500'
    # What is cached is used in spite of it.
    assert download(client, 'config.json') == FILES['config.json']
    with pytest.raises(ClientError, match='500'):
        client(f'hub.model_info({REPO!r})')
    with pytest.raises(ClientError) as error:
        download(client, 'model.safetensors')
    assert error.value.kinds[0] == 'LocalEntryNotFoundError'
    server.fault = 'error_500'
    server.fault_times = 1
    with pytest.raises(ClientError, match='500'):
        client(f'hub.model_info({REPO!r})')
    assert client(f'hub.model_info({REPO!r}).id') == REPO


def test_cut_download(server, client, tmp_path):
    # The client keeps whole chunks of 10 MiB: half of 22 MiB is one of these.
    large = WEIGHTS * 11
    server.add_repo(REPO, {'large.bin': large})
    server.fault = 'cut'
    server.fault_times = 1
    try:
        content = download(client, 'large.bin')
    except ClientError as error:
        # A client on the requests package, such as 0.25, gives up, and resumes at its next call.
        assert 'ChunkedEncodingError' in error.kinds
        content = download(client, 'large.bin')
    assert content == large
    assert [wanted for method, _, wanted in server.requests if method == 'GET'] == [None, 'bytes=10485760-']

    server.fault = 'cut'
    with Client(server.endpoint, tmp_path / 'other') as other:
        with pytest.raises(ClientError) as error:
            download(other, 'large.bin')
        assert {'RemoteProtocolError', 'ChunkedEncodingError'} & set(error.value.kinds)
        # Nothing of it is taken for the file.
        assert not other(f'hub.try_to_load_from_cache({REPO!r}, "large.bin")')
        server.fault = None
        assert download(other, 'large.bin') == large


def test_ranges(server):
    server.add_repo(REPO, {'ten.bin': b'0123456789'})

    def get(wanted):
        headers = {'Range': wanted} if wanted else {}
        request = urllib.request.Request(f'{server.endpoint}/{REPO}/resolve/main/ten.bin', headers=headers)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as response:
                return response.status, response.read(), response.headers['Content-Range']
        except urllib.error.HTTPError as error:
            with error:
                return error.code, None, error.headers['Content-Range']

    assert get(None) == (200, b'0123456789', None)
    assert get('bytes=4-') == (206, b'456789', 'bytes 4-9/10')
    assert get('bytes=4-4') == (206, b'4', 'bytes 4-4/10')
    assert get('bytes=8-99') == (206, b'89', 'bytes 8-9/10')
    assert get('bytes=-3') == (206, b'789', 'bytes 7-9/10')
    for wanted in ('bytes=10-', 'bytes=5-4', 'bytes=-', 'pages=1-2'):
        assert get(wanted) == (416, None, 'bytes */10')


def test_interrupted_upload(server, client, tmp_path):
    source = folder(tmp_path / 'source', FILES)
    upload = f'hub.upload_folder(repo_id={REPO!r}, folder_path={str(source)!r}).oid'
    client(f'hub.create_repo({REPO!r})')
    before = server.files(REPO)

    # The commit fails; what was put before it is kept, but not seen.
    server.cut_upload_after = 2
    with pytest.raises(ClientError) as error:
        client(upload)
    assert {'RemoteProtocolError', 'ConnectionError'} & set(error.value.kinds)
    assert server.files(REPO) == before and client(f'hub.list_repo_files({REPO!r})') == list(before)
    server.clear()
    client(upload)
    assert server.files(REPO) == before | FILES and 'PUT' not in methods(server)

    # A client that ends while its PUT fails.
    (source / 'model.safetensors').write_bytes(WEIGHTS[1:])
    server.cut_upload_after, server.cut_upload_times = 1, None
    server.clear()
    client.start(upload)
    while 'PUT' not in methods(server):
        time.sleep(0.01)
    client.kill()
    while server.connections:  # what it has sent is still read, and would be the write that fails next
        time.sleep(0.01)
    assert server.files(REPO) == before | FILES

    # The client repeats a PUT that failed once.
    server.cut_upload_after, server.cut_upload_times = 1, 1
    server.clear()
    with Client(server.endpoint, tmp_path / 'home', token=TOKEN) as second:
        second(upload)
    assert methods(server).count('PUT') == 2
    assert server.files(REPO)['model.safetensors'] == WEIGHTS[1:]


def test_with_xet(tmp_path):
    """Without HF_HUB_DISABLE_XET: hf_xet, where it is installed, takes no part unless LFS files are uploaded."""
    source = folder(tmp_path / 'source', FILES)
    with HubServer(lfs_threshold=None) as plain, HubServer() as server:
        with Client(plain.endpoint, tmp_path / 'home', token=TOKEN, env={'HF_HUB_DISABLE_XET': None}) as client:
            client(f'hub.create_repo({REPO!r})')
            client(f'hub.upload_folder(repo_id={REPO!r}, folder_path={str(source)!r})')
            assert plain.files(REPO).items() >= FILES.items() and 'PUT' not in methods(plain)
        server.add_repo(REPO, FILES)
        with Client(server.endpoint, tmp_path / 'other', token=TOKEN, env={'HF_HUB_DISABLE_XET': None}) as client:
            assert download(client, 'model.safetensors') == WEIGHTS
            assert [path for _, path, _ in server.requests] == [f'/{REPO}/resolve/main/model.safetensors'] * 2


def test_timm(server, tmp_path):
    with Client(server.endpoint, tmp_path / 'home', token=TOKEN) as client:
        client(
            'import timm, torch\n'
            'model = timm.create_model("test_resnet", num_classes=3).eval()\n'
            f'timm.models.push_to_hf_hub(model, {REPO!r}, safe_serialization=True)\n')
        assert {'config.json', 'model.safetensors', 'README.md'} <= set(server.files(REPO))
        server.clear()
        client(
            f'loaded = timm.create_model("hf-hub:{REPO}", pretrained=True).eval()\n'
            'x = torch.rand(2, 3, 64, 64)\n'
            'assert torch.equal(model(x), loaded(x))\n')
    reads = [(method, path.rsplit('/', 1)[1]) for method, path, _ in server.requests]
    assert reads == [(method, path) for path in ('config.json', 'model.safetensors') for method in ('HEAD', 'GET')]
