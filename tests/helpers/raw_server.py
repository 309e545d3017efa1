"""A server of files by their addresses, as a git host serves those of a repository, with faults, on loopback."""

from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from helpers.loopback import LoopbackServer


class RawServer(LoopbackServer):
    """The server.

    Attributes:
        files: Contents by path, without a leading slash.
        requests: Paths asked for, quoted as they came.
        fault: None, or what is wrong: 'missing' and 'error' are 404 and 500, 'cut' half of the body and the connection
            closed, 'short' half as if it were all, 'longer' more than there is, 'flipped' one wrong byte, and the start
            of an address is one that all requests are redirected to.
    """

    def __init__(self):
        super().__init__(Handler)
        self.files = {}
        self.requests = []
        self.fault = None


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.requests.append(self.path)
        path = unquote(urlsplit(self.path).path).lstrip('/')  # a proxy is asked for whole addresses
        content = self.server.files.get(path.removeprefix('moved/'))
        fault = None if path.startswith('moved/') else self.server.fault
        status, location = 200, None
        if fault and ':' in fault:
            status, content, location = 302, b'', fault + self.path
        elif content is None or fault in ('missing', 'error'):
            status, content = 500 if fault == 'error' else 404, b''
        half = len(content) // 2
        promised = len(content)
        if fault in ('cut', 'short'):
            content = content[:half]
        elif fault == 'flipped':
            content = content[:half] + bytes([content[half] ^ 1]) + content[half + 1:]
        elif fault == 'longer':
            content = content * 3
        self.send_response(status)
        self.send_header('Content-Length', str(promised if fault == 'cut' else len(content)))
        if location:
            self.send_header('Location', location)
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = fault == 'cut'
