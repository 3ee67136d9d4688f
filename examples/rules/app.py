"""Serves one line about itself on 127.0.0.1 and the port it is given."""

import http.server
import sys

PORT = int(sys.argv[1])


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"I am the app on port {PORT}.\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


http.server.HTTPServer(("127.0.0.1", PORT), Page).serve_forever()
