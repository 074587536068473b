"""A private PostgreSQL server, from Debian's package, for the time of a block."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from tests.distributed.ranks import free_port

__all__ = ["PASSWORD", "installed", "postgres"]

PASSWORD = "kept/out@of:sight"  # of a server that is gone a moment later
_USER = "trainlab"
_NOBODY = "nobody"


def installed() -> Path | None:
    """The folder of the newest server's programs; None if there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    return found[-1].parent if found else None


@contextmanager
def postgres() -> Iterator[str]:
    """Start a server that asks for a password, and give its URL; it is gone with its data at the end."""
    programs = installed()
    if programs is None:
        raise AssertionError("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    # The server refuses to run as root.
    user = pwd.getpwnam(_NOBODY) if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    os.chown(folder, user.pw_uid, user.pw_gid)
    as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    try:
        (folder / "password").write_text(PASSWORD, encoding="utf-8")
        os.chown(folder / "password", user.pw_uid, user.pw_gid)
        data, port = folder / "data", free_port()
        init = ["initdb", "-D", str(data), "-U", _USER, "--auth=scram-sha-256", "--pwfile", str(folder / "password")]
        _run(programs, [*init, "--no-sync", "--encoding=UTF8", "--no-locale"], folder, as_user)
        options = f"-p {port} -k {folder} -c fsync=off -c listen_addresses=127.0.0.1"
        control = ["pg_ctl", "-D", str(data), "-w", "-t", "200", "-l", str(folder / "log")]
        _run(programs, [*control, "-o", options, "start"], folder, as_user)
        try:
            yield f"postgresql://{_USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/postgres"
        finally:
            _run(programs, [*control, "-m", "immediate", "stop"], folder, as_user)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(programs: Path, command: list[str], folder: Path, as_user: dict[str, object]) -> None:
    # A file, for the server that is started holds what it is given open.
    with (folder / "output").open("ab") as output:
        done = subprocess.run(
            [programs / command[0], *command[1:]],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
            **as_user,  # type: ignore[call-overload]  # options by name
        )
    if done.returncode:
        raise AssertionError(f"{command[0]}: {(folder / 'output').read_text(errors='replace')}")
