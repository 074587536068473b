import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import Placement, Replicate, Shard

from tests.checkpoint.ranks import (
    WHOLE,
    Channels,
    as_rank,
    on_each,
    save,
    share,
    snapshots,
    write_sharded,
    writers,
)
from tests.checkpoint.samples import DETAILS, replace, same
from tests.checkpoint.writing import write as write_alone
from trainlab.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    Entry,
    Parts,
    Retention,
    Snapshot,
    WriteAbortedError,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    remove_rubbish,
    shared_place,
    without_parts,
)
from trainlab.checkpoint.commands import describe, find
from trainlab.checkpoint.parts import Box
from trainlab.errors import CheckpointDamagedError, CheckpointError, CheckpointMismatchError, PeerFailedError
from trainlab.storage import Store, open_store
from trainlab.storage.local import LocalStore

MESHES: list[tuple[int, tuple[int, ...], list[Placement]]] = [
    (1, (1,), [Shard(0)]),
    (2, (2,), [Shard(0)]),
    (4, (4,), [Shard(0)]),
    (5, (5,), [Shard(0)]),
    (3, (3,), [Replicate()]),
    (4, (2, 2), [Replicate(), Shard(0)]),
    (6, (3, 2), [Shard(0), Replicate()]),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of four ranks that no test changes."""
    return write_sharded(tmp_path_factory.mktemp("whole"), 4)


@pytest.mark.parametrize(("ranks", "mesh", "placements"), MESHES)
def test_what_ranks_save_is_read_whole(
    tmp_path: Path, ranks: int, mesh: tuple[int, ...], placements: list[Placement]
) -> None:
    """However tensors were distributed, one process reads them whole: weights, tied ones too, and the first state."""
    path = write_sharded(tmp_path, ranks, mesh=mesh, placements=placements)
    with Checkpoint.open(path) as checkpoint:
        weights = checkpoint.weights()["0"]
        assert checkpoint.ranks == ranks
        assert same({name: weights[name] for name in WHOLE}, WHOLE)
        assert weights["tied"] is weights["even"] and same(weights["plain"], torch.full((3,), 7.0))
        state = checkpoint.state()
        moment = state["moments"][0]
        assert isinstance(moment["average"], Parts) and moment["average"].dtype == torch.int64
        assert same(moment["average"].part((3, 1), (3, 2)), WHOLE["uneven"][3:6, 1:3])
        assert same(checkpoint.state(whole=True)["moments"], [{"step": torch.tensor(3.0), "average": WHOLE["uneven"]}])
        for rank in range(ranks):
            own = checkpoint.state(rank=rank)["own"]
            assert same(own, {"rank": rank, "draw": torch.full((2,), float(rank))})
        with pytest.raises(CheckpointMismatchError, match=f"written by {ranks} ranks.*rank {ranks}"):
            checkpoint.state(rank=ranks)
    assert same(load_checkpoint(path)["moments"][0]["average"], WHOLE["uneven"])
    assert latest_checkpoint(tmp_path) == path


def test_the_first_ranks_files_are_where_one_process_has_its(whole: Path) -> None:
    """Other ranks' files are in folders of their own, readable by any program, with no more than their parts."""
    files = sorted(path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file())
    own = [
        f"{folder}{name}"
        for folder in ("rank-1/", "rank-2/", "rank-3/")
        for name in ("state.json", "state.safetensors")
    ]
    first = ["manifest.json", "model.safetensors", "state.json", "state.safetensors"]
    assert set(files) == {*first, *own, *(f"rank-{rank}/model.safetensors" for rank in (1, 2, 3))}
    second = load_file(whole / "rank-1" / "model.safetensors")
    assert sorted(second) == ["even", "few", "phase", "uneven"]  # not what is whole on the first, nor an empty shard
    assert same(second["uneven"], WHOLE["uneven"][2:4])
    assert (whole / "rank-3" / "state.json").stat().st_size < 200


def test_a_module_loads_what_ranks_saved(whole: Path, tmp_path: Path) -> None:
    """Weights that several ranks saved go into an ordinary module; one rank's file alone does not pass for all."""
    model = torch.nn.Module()
    for name, tensor in {**WHOLE, "tied": WHOLE["even"], "plain": torch.zeros(3)}.items():
        model.register_buffer(name, torch.zeros_like(tensor))
    model._buffers["tied"] = model._buffers["even"]
    load_weights(model, whole)
    assert all(same(model.state_dict()[name], tensor) for name, tensor in WHOLE.items())
    with pytest.raises(CheckpointMismatchError, match=r"parts of tensors.*Pass the checkpoint's folder"):
        load_weights(model, whole / "model.safetensors")


def test_a_checkpoint_of_ranks_is_shown_whole(whole: Path) -> None:
    """The command line tells whole shapes and all ranks' files, without reading their data."""
    told = describe(find(str(whole), {}))
    assert told["ranks"] == 4 and len(told["files"]) == 12
    tensors = told["weights"]["model"]["0"]["tensors"]
    assert tensors["uneven"] == {"dtype": "int64", "shape": [7, 5]} and tensors["tied"]["same_as"] == "even"
    assert told["parameters"] == sum(tensor.numel() for tensor in WHOLE.values()) + 3


@pytest.mark.parametrize("other", [1, 2, 3, 6])
def test_each_rank_reads_its_part_of_what_others_saved(whole: Path, other: int) -> None:
    """Saved on 4 ranks, each of 1, 2, 3 or 6 gets its part, and reads no file of which it needs nothing."""
    for rank in range(other):
        with as_rank(rank, other) as grid, Checkpoint.open(whole, verify=False) as checkpoint:
            like = {name: share(torch.zeros_like(tensor), grid, [Shard(0)]) for name, tensor in WHOLE.items()}
            found = checkpoint.weights(like={"0": {**like, "tied": like["even"]}})["0"]
            for name, tensor in WHOLE.items():
                assert same(found[name].to_local(), share(tensor, grid, [Shard(0)]).to_local()), name
            assert found["tied"] is found["even"] and same(found["plain"], torch.full((3,), 7.0))
            if other == 2 and rank == 0:
                assert "rank-3/model.safetensors" not in checkpoint._verified


def test_a_part_is_read_of_what_one_process_saved(tmp_path: Path) -> None:
    """What one process saved whole is cut when ranks read it."""
    path = write_alone(tmp_path, weights={"model": {"0": WHOLE}})
    for rank in range(3):
        with as_rank(rank, 3) as grid, Checkpoint.open(path) as checkpoint:
            like = {name: share(torch.zeros_like(tensor), grid, [Shard(0)]) for name, tensor in WHOLE.items()}
            found = checkpoint.weights(like={"0": like})["0"]
            assert all(
                same(found[name].to_local(), share(tensor, grid, [Shard(0)]).to_local())
                for name, tensor in WHOLE.items()
            )


def test_all_ranks_have_the_same_outcome_and_names(tmp_path: Path) -> None:
    """The first rank numbers and removes; each rank knows the checkpoints that are there, after a restart, too."""
    made = writers(tmp_path, 3, retention=Retention(keep_last=2))
    contents = snapshots(3)
    for batches in (1, 2, 2, 3):
        done = save(made, snapshots(3), batches)
        assert [write.error for write in done] == [None] * 3
        assert len({str(write.location) for write in done}) == 1
    assert [writer.names for writer in made] == [["batch-0000002.1", "batch-0000003"]] * 3
    again = writers(tmp_path, 3, retention=Retention(keep_last=1), whole=tmp_path / "batch-0000003")
    assert [writer.names for writer in again] == [["batch-0000003"]] * 3
    assert save(again, contents, 4)[0].target.sequence == 5
    for writer in [*made, *again]:
        writer.close()


def test_modes_write_the_same_and_a_fork_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Beside the training or not, the same files are written; several processes are told once that none is forked."""
    for mode in ("async", "sync", "fork"):
        made = writers(tmp_path / mode, 2, mode=mode)
        for batches in (1, 2):
            assert [write.error for write in save(made, snapshots(2), batches)] == [None, None]
    names = ("model.safetensors", "rank-1/model.safetensors", "rank-1/state.safetensors", "rank-1/state.json")
    for name in names:
        contents = {(tmp_path / mode / "batch-0000002" / name).read_bytes() for mode in ("async", "sync", "fork")}
        assert len(contents) == 1
    assert [r.message for r in caplog.records].count(
        "Checkpoints are copied in memory instead of by a fork: several processes write them together."
    ) == 2  # one of each rank


class Failing(LocalStore):
    """A store that fails when a rank writes there."""

    def __init__(self, place: Path, where: str, error: Exception) -> None:
        super().__init__(place)
        self._where, self._error = where, error

    def write(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Fail, after a piece."""
        if self._where in name:
            super().write(name, [b"a piece"])
            raise self._error
        super().write(name, pieces)

    def publish(self, name: str, data: bytes) -> None:
        """Fail."""
        if self._where in name:
            raise self._error
        super().publish(name, data)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["rank-1/model", "rank-2/state.json", "0000002/model", "manifest"])
@pytest.mark.parametrize("mode", ["async", "sync"])
def test_a_disk_full_for_one_rank_is_the_loss_of_all(tmp_path: Path, where: str, mode: Any) -> None:
    """If one rank cannot write, no rank has the checkpoint, nothing of it is left, and the one before is valid."""
    first = write_sharded(tmp_path, 3, batches=1)
    channels = Channels(3)
    made = on_each(
        3,
        lambda rank: CheckpointWriter(
            Failing(tmp_path, where, FULL), channel=channels.of(rank), rank=rank, ranks=3, mode=mode
        ),
    )
    done = save(made, snapshots(3), 2)
    assert all(type(write.error) is CheckpointError and "No space left" in str(write.error) for write in done)
    assert [path.name for path in tmp_path.iterdir()] == [first.name]
    assert latest_checkpoint(tmp_path) == first
    assert [writer.names for writer in made] == [[first.name]] * 3
    on_each(3, lambda rank: setattr(made[rank]._store, "_where", "nowhere"))
    assert [write.error for write in save(made, snapshots(3), 2)] == [None] * 3


def test_another_error_of_one_rank_is_no_loss_but_a_failure(tmp_path: Path) -> None:
    """What no disk says ends the run: the rank where it happened has its own error, the others one that names it."""
    channels = Channels(2)
    made = on_each(
        2,
        lambda rank: CheckpointWriter(
            Failing(tmp_path, "rank-1", ZeroDivisionError("odd")), channel=channels.of(rank), rank=rank, ranks=2
        ),
    )
    first, second = (write.error for write in save(made, snapshots(2)))
    assert isinstance(first, PeerFailedError) and "Rank 1 failed" in str(first) and "odd" in str(first)
    assert isinstance(second, ZeroDivisionError)
    assert not list(tmp_path.iterdir())


def test_a_write_that_one_rank_gives_up_is_given_up(tmp_path: Path) -> None:
    """Aborted on one rank, a checkpoint is not made by the others either, and leaves nothing."""
    made = writers(tmp_path, 2)
    made[1].abort()
    assert all(isinstance(write.error, WriteAbortedError) for write in save(made, snapshots(2)))
    assert not list(tmp_path.iterdir())


def test_a_rank_that_is_gone_leaves_what_the_next_start_removes(tmp_path: Path) -> None:
    """Without a word from a rank nothing is committed nor removed, and what lies there is known as rubbish."""
    first = write_sharded(tmp_path, 2, batches=1)
    channels = Channels(2)
    made = writers(tmp_path, 2, channels)
    channels.dead.set()
    made[0].start(snapshots(2)[0], Entry("batch-0000002", 0, 2, 0), wait=False)
    assert isinstance(made[0].settle(wait=True).error, PeerFailedError)
    assert (tmp_path / "batch-0000002" / ".unfinished").exists()
    assert latest_checkpoint(tmp_path) == first
    assert remove_rubbish(open_store(tmp_path)) == ["batch-0000002"]


def test_ranks_that_do_not_fit_together_make_no_checkpoint(tmp_path: Path) -> None:
    """Parts that overlap, leave a hole or are of other forms are found before the commit, on every rank."""
    whole = torch.arange(6.0)

    def content(rank: int, shard: torch.Tensor, name: str = "w", shape: tuple[int, ...] = (6,)) -> Snapshot:
        with as_rank(rank, 2) as grid:
            held = share(torch.zeros(shape).to(shard.dtype), grid, [Shard(0)])
            held.to_local().copy_(shard)
            return Snapshot(weights={"model": {"0": {name: held}}}, state={}, details=DETAILS, rank=rank, ranks=2)

    overlapping = content(1, whole[:3])
    overlapping._files["rank-1/model.safetensors"].parts["w"] = (Box((2,), (3,)), (6,), torch.float32)
    for second in (
        content(1, whole[:3].double()),
        content(1, whole[:3], "other"),
        content(1, whole[:4], shape=(8,)),
        overlapping,
    ):
        done = save(writers(tmp_path, 2), [content(0, whole[:3]), second])
        assert all("not the whole of it" in str(write.error) for write in done if write), done
        assert not list(tmp_path.iterdir())


def test_ranks_that_name_it_differently_make_no_checkpoint(tmp_path: Path) -> None:
    """A rank that would write elsewhere is told, and no folder of a wrong name appears."""
    made = writers(tmp_path, 2)
    contents = snapshots(2)
    names = ["batch-0000001", "batch-0000002"]

    def one(rank: int) -> Any:
        return made[rank].start(contents[rank], Entry(names[rank], 0, 1, 0), wait=True).error

    assert all("under one name" in str(error) for error in on_each(2, one))
    assert not list(tmp_path.iterdir())


def writers_of(stores: list[Store], channels: Channels | None = None) -> list[Any]:
    """A writer of each rank, each with a store of its own; or why there is none."""
    among = channels or Channels(len(stores))
    return on_each(
        len(stores),
        lambda rank: CheckpointWriter(stores[rank], channel=among.of(rank), rank=rank, ranks=len(stores)),
    )


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_a_place_that_is_not_shared_is_told_before_the_training(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If some ranks have a folder or store of their own, all raise the same error, which names those ranks."""
    monkeypatch.setattr(shared_place, "_PATIENCE", 0.0)
    places = [str(tmp_path / f"disk-{n}") if kind == "disk" else f"memory://{tmp_path}-{n}/ck" for n in range(2)]
    stores = [open_store(places[rank in (1, 3)]) for rank in range(4)]
    errors = writers_of(stores)
    assert [type(error) for error in errors] == [CheckpointError] * 4
    assert len({str(error) for error in errors}) == 1
    for told in ("ranks 1, 3 (it does not see", stores[0].url, "where all ranks see the same files"):
        assert told in str(errors[2])
    assert [isinstance(error.__cause__, PeerFailedError) for error in errors] == [True, False, True, True]
    assert [store.folders() for store in stores] == [[]] * 4


def test_a_place_that_one_rank_may_not_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that is refused the store says so at the start, with the reason."""
    monkeypatch.setattr(shared_place, "_PATIENCE", 0.0)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    errors = writers_of([open_store(tmp_path / "ck"), open_store(tmp_path / "loop")])
    assert all("rank 1 (" in str(error) and "symbolic links" in str(error) for error in errors)


class Late(LocalStore):
    """A store in which a rank sees what others write a little later."""

    looks = 0

    def size(self, name: str) -> int:
        """Fail at the first look."""
        self.looks += 1
        if self.looks == 1:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return super().size(name)


def test_a_file_system_that_is_a_little_late_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that see each other's files only after a moment, as on a network file system, train."""
    monkeypatch.setattr(shared_place, "_PAUSE", 0.0)
    monkeypatch.setattr(shared_place, "_PATIENCE", 120.0)  # a busy machine may let more than its five seconds pass
    made = writers_of([open_store(tmp_path), Late(tmp_path)])
    assert [write.error for write in save(made, snapshots(2))] == [None, None]


def test_what_ranks_look_for_is_gone_when_they_train(tmp_path: Path) -> None:
    """Nothing of the look at the store is left, and what a process killed in the middle of it leaves is rubbish."""
    store = open_store(tmp_path / "ck")
    writers(store, 2)
    assert list((tmp_path / "ck").iterdir()) == []
    mark = shared_place.leave_mark(store)
    assert mark in store.folders() and list_checkpoints(store) == [] and latest_checkpoint(store) is None
    assert remove_rubbish(store) == [mark]
    channels = Channels(2)
    channels.dead.set()
    with pytest.raises(PeerFailedError):
        CheckpointWriter(store, channel=channels.of(0), rank=0, ranks=2)
    assert list((tmp_path / "ck").iterdir()) == []


def test_a_full_disk_at_the_start_is_no_error_yet(tmp_path: Path) -> None:
    """Ranks begin although nothing can be written, as one process does: what is lost is the first checkpoint."""
    stores: list[Store] = [Failing(tmp_path, "batch-", FULL) for _ in range(2)]
    made = writers_of(stores)
    assert all("No space left" in str(write.error) for write in save(made, snapshots(2)))
    assert list(tmp_path.iterdir()) == []


def test_one_process_looks_for_nothing(tmp_path: Path) -> None:
    """A run of one process writes nothing before its first checkpoint."""
    CheckpointWriter(open_store(tmp_path / "ck"))
    assert not (tmp_path / "ck").exists()


def test_a_folder_that_is_no_longer_shared_is_told(tmp_path: Path) -> None:
    """A rank that has lost the first one's folder says so, instead of writing to its own disk."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "own").mkdir()
    mount = tmp_path / "mount"
    mount.symlink_to(tmp_path / "shared")
    made = writers_of([open_store(tmp_path / "shared"), open_store(mount)])
    mount.unlink()
    mount.symlink_to(tmp_path / "own")
    errors = [str(write.error) for write in save(made, snapshots(2))]
    assert all("where all ranks see the same files" in error for error in errors)
    assert not list((tmp_path / "shared").iterdir()) and not list((tmp_path / "own").iterdir())


def test_a_hook_sees_all_ranks_files(tmp_path: Path) -> None:
    """The first rank's hook may add files and change the first one's, and not those of others."""
    seen: list[str] = []

    def add(folder: Path) -> None:
        seen.extend(sorted(path.name for path in folder.iterdir()))
        (folder / "notes.txt").write_text("mine")

    made = writers(tmp_path, 2)
    assert [write.error for write in save(made, snapshots(2), before_commit=add)] == [None, None]
    assert "rank-1" in seen
    with Checkpoint.open(tmp_path / "batch-0000005") as checkpoint:
        assert "notes.txt" in checkpoint.files and "rank-1/state.json" in checkpoint.files

    def spoil(folder: Path) -> None:
        (folder / "rank-1" / "state.json").unlink()

    done = save(made, snapshots(2), 6, before_commit=spoil)
    assert all("may not change those of other ranks" in str(write.error) for write in done)
    assert [path.name for path in tmp_path.iterdir()] == ["batch-0000005"]


def test_ranks_write_to_an_object_store(tmp_path: Path) -> None:
    """In a store that is no file system the same is written and read, hooks included."""
    store = open_store("memory://sharded-runs/checkpoints")
    try:
        made = writers(store, 3)
        hook: Callable[[Path], Any] = lambda folder: (folder / "notes.txt").write_text("mine")  # noqa: E731
        assert [write.error for write in save(made, snapshots(3), before_commit=hook)] == [None] * 3
        assert [write.error for write in save(made, snapshots(3), 6)] == [None] * 3
        with Checkpoint.open_in(store, "batch-0000005") as checkpoint:
            assert same({name: checkpoint.weights()["0"][name] for name in WHOLE}, WHOLE)
            assert "notes.txt" in checkpoint.files
            assert same(without_parts(checkpoint.state())["moments"][0]["average"], WHOLE["uneven"])
    finally:
        for name in store.folders():
            store.remove_folder(name)


@pytest.mark.parametrize("name", ["rank-1/model.safetensors", "rank-2/state.safetensors", "rank-1/state.json"])
def test_a_ranks_file_that_is_gone_changed_or_swapped_is_found(whole: Path, tmp_path: Path, name: str) -> None:
    """Nothing of a rank's file is used, not even a single part, if it is missing, changed or another rank's."""
    for spoil in (
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
        lambda path: shutil.copy(str(path).replace(name[:6], "rank-3"), path),
    ):
        shutil.rmtree(tmp_path / "spoilt", ignore_errors=True)
        folder = Path(shutil.copytree(whole, tmp_path / "spoilt"))
        spoil(folder / name)
        with pytest.raises(CheckpointDamagedError, match=name):
            Checkpoint.open(folder)
        with (
            pytest.raises(CheckpointDamagedError, match=name),
            Checkpoint.open(folder, verify=False) as checkpoint,
        ):
            checkpoint.weights()
            without_parts([checkpoint.state(rank=rank) for rank in range(4)])


def retold(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A file of tensors that tells other things of its parts."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    parts = json.loads(header["__metadata__"]["parts"])
    change(parts)
    header["__metadata__"]["parts"] = json.dumps(parts)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "an overlap": lambda parts: parts["uneven"].update(offset=[1, 0]),
    "a hole": lambda parts: parts["uneven"].update(offset=[3, 0]),
    "another whole": lambda parts: parts["uneven"].update(shape=[8, 5]),
    "a whole beyond memory": lambda parts: [part.update(shape=[2**40, *part["shape"][1:]]) for part in parts.values()],
    "a part beyond its whole": lambda parts: parts["uneven"].update(offset=[6, 0]),
    "a negative place": lambda parts: parts["uneven"].update(offset=[-1, 0]),
    "a place of other dimensions": lambda parts: parts["uneven"].update(offset=[2]),
    "a place that is true": lambda parts: parts["uneven"].update(offset=[True, 0]),
    "sizes beyond 64 bits": lambda parts: parts["uneven"].update(shape=[2**62, 2**62]),
    "a part that is whole": lambda parts: parts.pop("uneven"),
    "a part that there is not": lambda parts: parts.update(more=parts["uneven"]),
    "no place": lambda parts: parts["uneven"].pop("offset"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_parts_that_are_no_tensor_are_damage(
    whole: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    """Parts that overlap, leave a hole or lie nowhere are refused, though all checksums are right."""
    folder = Path(shutil.copytree(whole, tmp_path / whole.name))
    name = "rank-1/model.safetensors"
    replace(folder, name, retold((folder / name).read_bytes(), change))
    for verify in (True, False):
        with (
            pytest.raises(CheckpointDamagedError, match="uneven|more|part"),
            Checkpoint.open(folder, verify=verify) as checkpoint,
        ):
            checkpoint.weights()
    assert latest_checkpoint(tmp_path) is None


def test_it_does_not_matter_which_rank_holds_which_part(whole: Path, tmp_path: Path) -> None:
    """A part is known by what its file says, and not by the rank that wrote it."""
    folder = Path(shutil.copytree(whole, tmp_path / whole.name))
    names = [f"rank-{rank}/model.safetensors" for rank in (1, 2)]
    contents = [(folder / name).read_bytes() for name in names]
    for name, content in zip(names, reversed(contents), strict=True):
        replace(folder, name, content)
    with Checkpoint.open(folder) as checkpoint:
        assert same({name: checkpoint.weights()["0"][name] for name in WHOLE}, WHOLE)
