"""The app: a page on 127.0.0.1:8000 that shows what the database says."""

import http.server
import socket


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        with socket.create_connection(("db", 5432), timeout=5) as database:
            line = database.makefile().readline()
        body = f"The app asked the database, which said: {line}".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Page).serve_forever()
