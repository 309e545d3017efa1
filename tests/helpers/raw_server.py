"""A server of files by their addresses, as a git host serves those of a repository, with faults, on loopback."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class RawServer:
    """The server; as a context manager it runs in a thread.

    Attributes:
        files: Contents by path, without a leading slash.
        requests: Paths asked for, quoted as they came.
        fault: None, or what is wrong: 'missing' and 'error' are 404 and 500, 'cut' half of the body and the connection
            closed, 'short' half as if it were all, 'longer' more than there is, 'flipped' one wrong byte, and the start
            of an address is one that all requests are redirected to.
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
        content = self.files.get(path.removeprefix('moved/'))
        fault = None if path.startswith('moved/') else self.fault
        status, headers = 200, {}
        if fault and ':' in fault:
            status, content, headers = 302, b'', {'Location': fault + handler.path}
        elif content is None or fault in ('missing', 'error'):
            status, content = 500 if fault == 'error' else 404, b''
        half = len(content) // 2
        headers['Content-Length'] = len(content)
        if fault in ('cut', 'short'):
            content = content[:half]
        elif fault == 'flipped':
            content = content[:half] + bytes([content[half] ^ 1]) + content[half + 1:]
        elif fault == 'longer':
            content = content * 3
        if fault != 'cut':
            headers['Content-Length'] = len(content)
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, str(value))
        handler.end_headers()
        handler.wfile.write(content)
        handler.close_connection = fault == 'cut'
