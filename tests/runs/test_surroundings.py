"""What is recorded of a run's code and packages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainlab.runs.surroundings import describe_devices, list_packages, record_changes


def git(folder: Path, *arguments: str) -> str:
    """Call git in a folder."""
    identity = {f"GIT_{who}_{what}": "me" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env={**os.environ, **identity},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A git tree with a folder of code, in the state of its only commit."""
    (tmp_path / "tree/code").mkdir(parents=True)
    for name in ("kept.py", "changed.py", "removed.py", "moved.py", "data.bin"):
        (tmp_path / "tree/code" / name).write_bytes(name.encode() * 20 + b"\0\xff\n")
    git(tmp_path, "init", "-q", "tree")
    git(tmp_path / "tree", "add", ".")
    git(tmp_path / "tree", "commit", "-qm", "first")
    return tmp_path / "tree"


def contents(tree: Path) -> dict[str, bytes]:
    """The tracked files of a tree."""
    return {name: (tree / name).read_bytes() for name in git(tree, "ls-files").split() if (tree / name).exists()}


def test_the_patch_makes_the_code_of_the_run(tree: Path, tmp_path: Path) -> None:
    """The commit and changes.patch give the code back, byte for byte: staged or not, binary, new, moved and removed."""
    code, run = tree / "code", tmp_path / "run"
    run.mkdir()
    git(tree, "config", "diff.noprefix", "true")
    git(tree, "config", "diff.external", "false")
    (code / "changed.py").write_text("staged\n")
    git(tree, "add", ".")
    (code / "changed.py").write_text("staged, and then changed: ä\n")
    (code / "data.bin").write_bytes(bytes(range(256)))
    (code / "removed.py").unlink()
    git(tree, "mv", "code/moved.py", "moved here.py".replace(" ", "-"))
    (code / "new.py").write_text("new\n")
    git(tree, "add", "code/new.py")
    (code / "forgotten ü.py").write_text("unknown to git\n")
    told = record_changes(code, run)
    assert told is not None and told["dirty"] and told["patch"] == "changes.patch"
    assert told["untracked"] == ["code/forgotten ü.py"] and told["untracked_left_out"] == 0
    git(tmp_path, "clone", "-q", "tree", "again")
    git(tmp_path / "again", "checkout", "-q", told["commit"])
    git(tmp_path / "again", "apply", "--index", str(run / "changes.patch"))
    assert contents(tmp_path / "again") == contents(tree)


def test_a_clean_tree_has_no_patch(tree: Path, tmp_path: Path) -> None:
    """Without changes there is no patch, not even that of an earlier start; outside of git there is nothing."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "changes.patch").write_text("of an earlier start")
    told = record_changes(tree, run)
    assert told == {
        "commit": git(tree, "rev-parse", "HEAD").strip(),
        "dirty": False,
        "patch": None,
        "patch_left_out": None,
        "untracked": [],
        "untracked_left_out": 0,
        "problem": None,
    }
    assert not (run / "changes.patch").exists()
    assert record_changes(tmp_path, run) is None


def test_a_huge_patch_is_left_out_and_told(tree: Path, tmp_path: Path) -> None:
    """Changes of more than 10 MiB are not copied into every run; the record says so, and that the tree was changed."""
    run = tmp_path / "run"
    run.mkdir()
    (tree / "code/data.bin").write_bytes(os.urandom(12 * 2**20))
    for number in range(60):
        (tree / f"unknown-{number}").touch()
    told = record_changes(tree, run)
    assert told is not None and told["dirty"] and told["patch"] is None
    assert told["patch_left_out"] == "it is larger than 10 MiB" and not (run / "changes.patch").exists()
    assert len(told["untracked"]) == 50 and told["untracked_left_out"] == 10


def test_packages_are_listed_as_pip_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each package is there once with its version, or where it came from, without the password of that."""
    for name, origin in (
        ("one", ""),
        ("two", '{"url": "https://me:secret@host/two.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}}'),
        ("broken", "{"),
    ):
        folder = tmp_path / f"a_{name}-1.5.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: A.{name}\nVersion: 1.5\n")
        if origin:
            (folder / "direct_url.json").write_text(origin)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    lines = list_packages().splitlines()
    assert lines == sorted(lines, key=lambda line: line.replace("==", " ").split()[0].lower())
    assert {"A.one==1.5", "A.two @ git+https://host/two.git@abc", "A.broken==1.5"} <= set(lines)
    assert sum(line.lower().startswith("pytest==") for line in lines) == 1


def test_devices_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """The record names the processor, how many may be used, and which GPUs were shown to the run."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    told = describe_devices()
    assert told["cpu"] and told["cpus"] == len(os.sched_getaffinity(0)) and told["cuda_visible_devices"] == "3"


SETTINGS: dict[str, tuple[str, str]] = {
    "context": ("diff.context", "0"),
    "order": ("diff.orderFile", "nowhere"),
    "prefix": ("diff.srcPrefix", "x/"),
    "submodule": ("diff.submodule", "diff"),
}


@pytest.mark.parametrize("setting", [*SETTINGS, "environment"])
def test_no_setting_of_gits_makes_the_patch_useless(
    setting: str, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a person has told git, by its settings or its variables, changes.patch is of this tree and applies."""
    git(tmp_path, "init", "-q", "part")
    (tmp_path / "part/a.py").write_text("a\n")
    git(tmp_path / "part", "add", ".")
    git(tmp_path / "part", "commit", "-qm", "first")
    git(tree, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(tmp_path / "part"), "part")
    git(tree, "commit", "-qm", "second")
    (tree / "part/a.py").write_text("b\n")
    git(tree / "part", "commit", "-qam", "second")
    code = tree / "code/changed.py"
    code.write_text("".join(f"{number}\n" for number in range(30)))
    git(tree, "add", "code")
    git(tree, "commit", "-qm", "third")
    code.write_text(code.read_text().replace("15\n", "changed\n"))
    run = tmp_path / "run"
    run.mkdir()
    if setting in SETTINGS:
        git(tree, "config", *SETTINGS[setting])
    else:
        other = {"GIT_DIR": "part/.git", "GIT_WORK_TREE": "part", "GIT_INDEX_FILE": "nowhere", "GIT_PREFIX": "x"}
        for name, value in {**other, "GIT_DIFF_OPTS": "--unified=0"}.items():
            monkeypatch.setenv(name, str(tmp_path / value) if name != "GIT_DIFF_OPTS" else value)
    told = record_changes(tree / "code", run)
    monkeypatch.undo()
    assert told is not None and told["problem"] is None and told["patch"] == "changes.patch"
    git(tmp_path, "clone", "-q", "tree", "again")
    git(tmp_path / "again", "checkout", "-q", told["commit"])
    git(tmp_path / "again", "apply", "--index", str(run / "changes.patch"))
    assert (tmp_path / "again/code/changed.py").read_text() == code.read_text()


def test_what_git_cannot_tell_is_recorded_and_warned_of(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A repository of somebody else's, one without a commit and one without git leave a record that says why."""
    git(tmp_path, "init", "-q", "empty")
    found = [record_changes(tmp_path / "empty", tmp_path)]
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    found.append(record_changes(tree, tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    found.append(record_changes(tree, tmp_path))
    for told, why in zip(found, ("ambiguous argument 'HEAD'", "dubious ownership", "cannot be started"), strict=True):
        assert told is not None and told["commit"] is None and told["dirty"] is None and why in told["problem"]
        assert why in caplog.text
