"""HTTP on 127.0.0.1, in a thread of the test."""

import threading
from http.server import ThreadingHTTPServer


class LoopbackServer(ThreadingHTTPServer):
    """A server that runs while its `with` block does; handlers reach it as `self.server`."""

    def __init__(self, handler):
        super().__init__(('127.0.0.1', 0), handler)
        self.endpoint = f'http://127.0.0.1:{self.server_port}'

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={'poll_interval': 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()
