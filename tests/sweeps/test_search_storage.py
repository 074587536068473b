"""Where a search's trials are kept, and what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy

from trainlab.errors import InvalidTypeError, InvalidValueError, MissingDependencyError, StorageError
from trainlab.experiments.searched import SearchedBy, connect, disconnect, told_by_driver
from trainlab.runs.masking import mask_passwords
from trainlab.runs.yaml_text import mask_command
from trainlab.sweeps.storage import check_local, file_system, open_storage, sqlite_url

# Before it there is no URL of a file with such a name, which is then refused.
QUOTED = pytest.mark.skipif(sqlalchemy.__version__ < "2.1", reason="SQLAlchemy unquotes a file's name from 2.1 on")
MOUNTS = """\
tmpfs /run tmpfs rw 0 0
/dev/root / ext4 rw 0 0
server:/home /home nfs4 rw,vers=4.2 0 0
tmpfs /home/me/fast tmpfs rw 0 0
me@host: /mnt/my\\040data fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/data/a", "ext4"),
        ("/run/a", "tmpfs"),
        ("/home/me/a", "nfs4"),
        ("/home/me/fast/a", "tmpfs"),
        ("/mnt/my data/a", "fuse.sshfs"),
    ],
)
def test_the_file_system_of_a_path(tmp_path: Path, path: str, kind: str) -> None:
    """The kind of a path's file system is that of the innermost place that something is mounted at."""
    (tmp_path / "mounts").write_text(MOUNTS)
    assert file_system(Path(path), tmp_path / "mounts") == kind


def test_sqlite_on_a_network_is_refused(tmp_path: Path) -> None:
    """A SQLite file on a network's file system is refused, with the ways out; one on a disk is not."""
    (tmp_path / "mounts").write_text(MOUNTS)
    for place in ("/home/me/study.db", "/mnt/my data/study.db"):
        with pytest.raises(
            InvalidValueError, match=r"damaged by several processes(.|\n)*postgresql://(.|\n)*journal://"
        ):
            check_local(sqlite_url(Path(place)), tmp_path / "mounts")
    check_local(sqlite_url(Path("/home/me/fast/study.db")), tmp_path / "mounts")
    check_local(sqlite_url(tmp_path / "study.db"))


@pytest.mark.parametrize(
    "name", ["a%41b", "a#b", "a b", "ü", *(pytest.param(one, marks=QUOTED) for one in ("a?b", "a{b}"))]
)
def test_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    """The SQLite file of a search is in its own folder, whatever characters that has in its name."""
    folder = tmp_path / name
    folder.mkdir()
    disconnect(open_storage(sqlite_url(folder / "study.db")))
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*.db")] == [Path(name) / "study.db"]


@QUOTED
def test_a_network_folder_of_any_name(tmp_path: Path) -> None:
    """A SQLite file on a network's file system is refused also where its URL writes the place otherwise."""
    (tmp_path / "mounts").write_text("server:/home /what?%41 nfs4 rw 0 0\n")
    with pytest.raises(InvalidValueError, match="damaged by several processes"):
        check_local(sqlite_url(Path("/what?%41/study.db")), tmp_path / "mounts")


def test_a_trial_does_not_show_its_storage() -> None:
    """What a trial's process is told of its search does not show the storage's password."""
    told = SearchedBy("postgresql://me:hidden@host/db", "study", 0, "loss", True, None, "")
    assert "hidden" not in repr(told) and "study" in repr(told)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_storage_in_memory_is_refused(url: str) -> None:
    """A storage in memory, which a trial's process would not see, is refused."""
    with pytest.raises(InvalidValueError, match="share no memory"):
        open_storage(url)


@pytest.mark.parametrize(
    ("url", "error", "told"),
    [
        ("mysql://me:hidden@host/db", MissingDependencyError, "pip install mysqlclient"),
        ("nothing://me:hidden@host/db", InvalidValueError, "is a URL such as"),
        ("no url", InvalidValueError, "is a URL such as"),
        ("sqlite:////proc/none/study.db", StorageError, "cannot be opened(.|\n)*its folder is there"),
        ("journal:///proc/none/study.log", StorageError, "cannot be opened(.|\n)*its folder is there"),
    ],
)
def test_a_storage_that_cannot_be_opened(url: str, error: type[Exception], told: str) -> None:
    """A storage that cannot be opened is told with what to do, and without its password."""
    with pytest.raises(error, match=told) as raised:
        open_storage(url)
    assert "hidden" not in str(raised.value)


def test_a_storage_that_is_no_text() -> None:
    """A storage that is an object, which no trial's process could open, is refused."""
    with pytest.raises(InvalidTypeError, match="storage is a URL"):
        open_storage(Path("/tmp/study.db"))  # type: ignore[arg-type]  # the mistake


def test_passwords_are_hidden() -> None:
    """The passwords of URLs, wherever they stand in them, do not show in a text."""
    text = "at postgresql://me:a:b%40c@host/db?x=1&password=hidden&y=2 and redis://:other@host:1"
    assert mask_passwords(text) == "at postgresql://me:***@host/db?x=1&password=***&y=2 and redis://:***@host:1"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////tmp/x.db?password=hunter2",
        "postgresql://host/db?user=bob&PassWord=hunter2 hunter2&x=1",
        "postgresql://host/db?sslpassword=hunter2",
        "mysql://bob@host/db?x=1&passwd=hunter2",
        "mssql://host/db?pwd=hunter2",
        "postgresql://bob:hunter2/hunter2@host/db",
        "postgresql://bob:hunter2 hunter2@host/db",
        "postgresql://bob:hunter2@hunter2@host/db",
        "postgresql://bob:hunter2@/hunter2:@hunter2@host/db?x=y",
        "postgresql://bob:hunter2://hunter2@host/db",
    ],
)
def test_no_part_of_a_password_is_recorded(url: str) -> None:
    """However a password stands in the URL of a storage, neither messages nor a run's record have a part of it."""
    assert "hunter2" not in mask_passwords(url) and "***" in mask_passwords(url)
    for command in (["--storage", url], [f"--storage={url}"]):
        assert "hunter2" not in "".join(mask_command(command))


@pytest.mark.parametrize(
    "password", ["first@second", "first@second/third", "third:one second", "first%40second", "x@second"]
)
def test_a_driver_does_not_tell_a_password(password: str) -> None:
    """A driver that takes a piece of a password for the host, and says so, does not show it."""
    url = f"postgresql://bob:{password}@host.invalid/db"
    pieces = ("first", "rst", "second", "third")
    with pytest.raises((StorageError, InvalidValueError, MissingDependencyError)) as raised:
        open_storage(url)
    assert not any(piece in str(raised.value) for piece in pieces)
    error = OSError("could not translate host name 'second@host.invalid' of 'first second' to an address")
    assert not any(piece in told_by_driver(error, url) for piece in pieces if piece in password)
    assert "could not translate host name" in told_by_driver(error, url)


def test_a_journal_in_a_file(tmp_path: Path) -> None:
    """Optuna's journal in a file, which can be on NFS, is a storage as others are."""
    storage = connect(f"journal://{tmp_path}/study.log")
    disconnect(storage)
    assert type(storage).__name__ == "JournalStorage"


def test_without_optuna(tmp_path: Path) -> None:
    """Without Optuna a search tells how to install it."""
    program = (
        "import sys; sys.modules['optuna'] = None; from trainlab.experiments.searched import connect; connect('a')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "MissingDependencyError: A search needs Optuna" in done.stderr
    assert "pip install 'trainlab[search]'" in done.stderr
