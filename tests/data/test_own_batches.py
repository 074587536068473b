"""Elements that are batches already, on several ranks: ``batch_size=None``."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset, TensorDataset

from tests.data.datasets import Flow
from tests.data.test_sharded import on_threads
from tests.data.test_sharing import of_ranks
from trainlab.data import BatchStream, DataLoader
from trainlab.errors import DataError


class Elements(IterableDataset[Any]):
    """Elements that are batches already."""

    def __init__(self, elements: list[Any]) -> None:
        self.elements = elements

    def __iter__(self) -> Iterator[Any]:
        return iter(self.elements)


@pytest.mark.parametrize("kind", ["iterable", "map", "sampler"])
def test_records_of_elements_that_are_batches_are_counted(kind: str) -> None:
    """With batch_size=None a rank counts the records inside its elements, so that each record has the same weight."""
    sizes = [[1, 4, 2], [15, 3]]

    def rank_reads(rank: int, exchange: Any) -> tuple[list[tuple[int, int]], list[int]]:
        elements = [(torch.full((size, 3), float(size)), torch.zeros(size)) for size in sizes[rank]]
        if kind == "sampler":
            rows: list[list[int]] = [[0] * size for size in sizes[rank]]
            loader = DataLoader(TensorDataset(torch.zeros(1, 3)), batch_size=None, sampler=rows, sharded=True)
        elif kind == "map":
            loader = DataLoader(elements, batch_size=None, sharded=True)
        else:
            loader = DataLoader(Elements(elements), batch_size=None, sharded=True)

        def stream() -> BatchStream:
            return BatchStream(loader, seed=1, data_rank=rank, data_size=2, exchange=exchange)

        found, positions = [], []
        one = stream()
        one.start_epoch(0)
        saved = None
        for number, _ in enumerate(one):
            found.append((one.local_records, one.global_records))
            positions.append(one.position())
            if number == 0:
                saved = one.position(), one.state_dict()
        one.close()
        again = stream()
        assert saved is not None
        again.start_epoch(0, records=saved[0], batches=1, state=saved[1])
        assert [(again.local_records, again.global_records) for _ in again] == found[1:]
        assert again.position() == positions[-1]
        again.close()
        return found, positions

    first, second = on_threads(2, rank_reads)
    assert first == ([(1, 16), (4, 7), (2, 2)], [16, 23, 25])
    assert second == ([(15, 16), (3, 7), (0, 2)], [16, 23, 25])


def test_an_element_that_cannot_be_measured_counts_as_one() -> None:
    """An element of the user's own making, whose records only the Trial can count, is one record, and no error."""

    def rank_reads(rank: int, exchange: Any) -> list[tuple[int, int]]:
        loader = DataLoader(["a", "bcd"], batch_size=None, sharded=True)
        stream = BatchStream(loader, seed=1, data_rank=rank, data_size=2, exchange=exchange)
        stream.start_epoch(0)
        found = [(stream.local_records, stream.global_records) for _ in stream]
        stream.close()
        return found

    assert on_threads(2, rank_reads) == [[(1, 2), (1, 2)]] * 2


def test_batches_of_the_data_sets_own_are_dealt_out_for_validation_only() -> None:
    """Without automatic batching, elements are validated in turn; several ranks that train them get the ways out."""
    told = r"counted nor weighted.*batch_size=None.*on 3 ranks.*batch_size= or batch_sampler=.*sharded=True"
    for dataset in (torch.arange(7), Flow(7, shuffled=False)):
        loader = DataLoader(dataset, batch_size=None)
        dealt = sorted(itertools.chain(*of_ranks(loader, 3, deal="batches")))
        assert [records for *_, records in dealt] == [[number] for number in range(7)]
        assert [records for *_, records in of_ranks(loader, 1)[0]] == [[number] for number in range(7)]
        with pytest.raises(DataError, match=told):
            BatchStream(loader, seed=1, data_size=3)
