"""A host that serves the files of a Label Studio."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Host:
    """Serves ``files`` ({path: content}) to requests with the right token; ``redirects`` lead elsewhere."""

    def __init__(self, token):
        self.token, self.files, self.redirects, self.asked = token, {}, {}, []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                host.asked.append(self.path)
                if self.headers["Authorization"] != f"Token {host.token}":
                    self.send_error(401)
                elif self.path in host.redirects:
                    self.send_response(302)
                    self.send_header("Location", host.redirects[self.path])
                    self.end_headers()
                elif self.path in host.files:
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(host.files[self.path])
                else:
                    self.send_error(404)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
