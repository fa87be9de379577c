"""Start a PostgreSQL server for a test, and kill and restart it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

from harness.processes import free_port

PASSWORD = "s3cret/@word"
"""The password of the server's user, which no output may contain."""


def programs() -> Path | None:
    """Return the folder with the programs of the newest PostgreSQL server, None if there is none."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parts[-2]))  # Debian
    found = shutil.which("pg_ctl")
    return folders[-1] if folders else Path(found).resolve().parent if found else None


class Server:
    """A PostgreSQL server on a local port, with the database `sweeps`.

    PostgreSQL refuses to run as root, so root starts it as another user. The database has no encoding, which is what
    `initdb` makes of the locale C.
    """

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder = programs, folder
        self._data = folder / "data"
        self.port = free_port()
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            shutil.chown(folder, "nobody")
            self._user = {"user": "nobody", "cwd": folder}
        (folder / "password").write_text(PASSWORD)
        os.chmod(folder / "password", 0o644)
        self._call("initdb", "-D", self._data, "-U", "sweeper", "-A", "scram-sha-256", "--no-sync",
                   "--pwfile", folder / "password")  # fmt: skip
        self.start()
        self._call("createdb", "-h", "127.0.0.1", "-p", self.port, "-U", "sweeper", "sweeps")

    def _call(self, program: str, *args: Any) -> None:
        environment = {**os.environ, "PGPASSWORD": PASSWORD, "LC_ALL": "C"}
        command = [str(self._programs / program), *map(str, args)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60, env=environment, **self._user)

    @property
    def url(self) -> str:
        return f"postgresql://sweeper:s3cret%2F%40word@127.0.0.1:{self.port}/sweeps"

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._folder}"
        self._call("pg_ctl", "-D", self._data, "-l", self._folder / "log", "-w", "-t", "60", "-o", options, "start")

    def kill(self) -> None:
        """Kill the server and all its processes at once."""
        leader = int((self._data / "postmaster.pid").read_text().splitlines()[0])
        children = Path(f"/proc/{leader}/task/{leader}/children").read_text().split()
        for process in (leader, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        (self._data / "postmaster.pid").unlink()

    def stop(self) -> None:
        if (self._data / "postmaster.pid").exists():
            self._call("pg_ctl", "-D", self._data, "-m", "immediate", "stop")


@contextlib.contextmanager
def run_server() -> Generator[Server]:
    """Run a server until the end of the block."""
    found = programs()
    assert found is not None
    folder = Path(tempfile.mkdtemp(prefix="cnnspec-postgres-"))
    server = None
    try:
        server = Server(found, folder)
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
