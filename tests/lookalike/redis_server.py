"""Servers for the tests of what speaks to Redis: a real one on a socket of its own, a bad way to it, a liar."""

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

from lookalike.seeds_redis import RedisSeedStore

BINARY = shutil.which("redis-server") or shutil.which("valkey-server")


def needed():
    """The package redis, or a skip that says what is missing."""
    if BINARY is None:
        pytest.skip("no redis-server or valkey-server on the PATH")
    return pytest.importorskip("redis", reason="the extra `redis` is not installed")


class Server:
    """A real server in a folder; it keeps an append-only file, so that it comes back with what it had."""

    def __init__(self, folder, *arguments, port=0):
        self.folder, self.socket, self.arguments, self.port = folder, folder / "s", arguments, port
        self.process = None
        self.start()

    def start(self):
        settings = ["--port", str(self.port), "--unixsocket", self.socket, "--save", "", "--appendonly", "yes"]
        settings += ["--appendfsync", "no"]  # what a killed process wrote is there all the same
        command = [BINARY, *settings, "--bind", "127.0.0.1", "--dir", self.folder, "--logfile", self.folder / "log"]
        self.process = subprocess.Popen([*map(str, command), *map(str, self.arguments)])
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(Exception):
                return self.admin().ping()
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise RuntimeError((self.folder / "log").read_text() if (self.folder / "log").exists() else "no server")

    def admin(self):
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        return redis.Redis(unix_socket_path=str(self.socket), protocol=2, retry=Retry(NoBackoff(), 0))

    def url(self, user=None, password=None):
        return f"unix://{user}:{password}@{self.socket}" if user else f"unix://{self.socket}"

    def stop(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(20)

    def kill(self):
        self.process.kill()
        self.process.wait(20)

    @contextlib.contextmanager
    def frozen(self):
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


def allow(admin, text=RedisSeedStore.__doc__, **names):
    """Makes the user of an `ACL SETUSER` line in a docstring; the user and password."""
    line = " ".join(re.search(r"ACL SETUSER (.*?)\n\n", text, re.DOTALL)[1].split())
    for old, new in names.items():
        line = line.replace(old, new)
    admin.execute_command("ACL", "SETUSER", *line.replace(">PASSWORD", ">s3cret/x").split())
    return line.split()[0], "s3cret%2Fx"


class Fake:
    """A server that hands each connection to a function `talk(socket, number)`."""

    def __init__(self, talk):
        self.talk, self.connections = talk, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://app:hidden@127.0.0.1:{self.listener.getsockname()[1]}/0"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.connections += 1
                threading.Thread(target=self.serve, args=(connection, self.connections), daemon=True).start()

    def serve(self, connection, number):
        with contextlib.suppress(OSError), connection:
            connection.recv(65536)  # AUTH
            connection.sendall(b"+OK\r\n")
            self.talk(connection, number)

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


class Proxy:
    """The way to a real server: passes bytes on until a connection has had so many, or while nothing stalls it.

    Args:
        server: Server.
        limits: callable. Bytes that a new connection passes there and back before it is cut; None: all.
    """

    def __init__(self, server, limits=lambda: (None, None)):
        self.server, self.limits = server, limits
        self.passing = threading.Event()
        self.passing.set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self.listener.getsockname()[1]}/0"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.socket(socket.AF_UNIX)
                try:
                    far.connect(str(self.server.socket))
                except OSError:  # the server is down
                    near.close()
                    continue
                there, back = self.limits()
                for source, target, limit in ((near, far, there), (far, near, back)):
                    threading.Thread(target=self.move, args=(source, target, limit), daemon=True).start()

    def move(self, source, target, limit):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.passing.wait()
                target.sendall(data[:limit])
                limit = None if limit is None else limit - len(data)
                if limit is not None and limit <= 0:
                    break
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.passing.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
