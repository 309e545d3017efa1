"""A server of files by their addresses, as a git host serves those of a repository, with faults, on loopback."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

FAULTS = ('missing', 'error', 'cut', 'short', 'longer', 'flipped', 'redirect_file', 'redirect_ftp', 'redirect')


class RawServer:
    """The server; as a context manager it runs in a thread.

    Attributes:
        files: Contents by path, without a leading slash.
        requests: Paths asked for, quoted as they came.
        fault: None, or what is wrong: 'missing' and 'error' are 404 and 500, 'cut' half of the body and the connection
            closed, 'short' half as if it were all, 'longer' much more than there is, 'flipped' one wrong byte,
            'redirect_file' and 'redirect_ftp' lead elsewhere, 'redirect' leads, harmlessly, to the same server.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fault = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def do_GET(self):
                server.requests.append(self.path)
                server.answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.http.daemon_threads = True
        self.endpoint = f'http://127.0.0.1:{self.http.server_port}'

    def __enter__(self) -> 'RawServer':
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={'poll_interval': 0.05}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(handler.path).path).lstrip('/')  # a proxy is asked for whole addresses
        moved = path.startswith('moved/')
        content = self.files.get(path.removeprefix('moved/'))
        fault = None if moved else self.fault
        targets = {'redirect': f'{self.endpoint}/moved{handler.path}', 'redirect_file': 'file:///etc/hostname',
                   'redirect_ftp': 'ftp://127.0.0.1/file'}
        if fault in targets:
            handler.send_response(302)
            handler.send_header('Location', targets[fault])
            handler.send_header('Content-Length', '0')
            handler.end_headers()
            return
        if content is None or fault in ('missing', 'error'):
            handler.send_response(500 if fault == 'error' else 404)
            handler.send_header('Content-Length', '0')
            handler.end_headers()
            return
        told = len(content)
        if fault in ('cut', 'short'):
            content = content[:told // 2]
            told = told if fault == 'cut' else len(content)
        elif fault == 'flipped':
            content = content[:told // 2] + bytes([content[told // 2] ^ 1]) + content[told // 2 + 1:]
        elif fault == 'longer':
            content = content * 3
            told = len(content)
        handler.send_response(200)
        handler.send_header('Content-Length', str(told))
        handler.end_headers()
        handler.wfile.write(content)
        handler.close_connection = fault == 'cut'
