"""Stands in for a database: one line on port 5432 for each connection."""

import socketserver


class Greeting(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(b"I am the database\n")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True


if __name__ == "__main__":
    Server(("0.0.0.0", 5432), Greeting).serve_forever()
