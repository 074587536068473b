"""Any number of ranks get the metrics that one process gets."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.distributed.ranks import run_ranks
from tests.training import jobs, metric_jobs

SIZES = (pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(4, marks=pytest.mark.slow))
CASES: dict[str, dict[str, Any]] = {
    "101": {},
    "3": {"validated": 3},
    "48": {"validated": 48},
    "by 7": {"validation_batch": 7},
    "by 101": {"validation_batch": 101},
}
# What the floating-point sums of torchmetrics, in float32, may differ by.
LOOSE = {"tm_spearman": 1e-6}


class Results(dict[tuple[int, str], list[dict[str, Any]]]):
    """What each rank told, by the number of ranks and the way; so many ranks measure once they are asked for.

    Args:
        folder: of their runs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __missing__(self, key: tuple[int, str]) -> list[dict[str, Any]]:
        folder, ways = self._folder / str(key[0]), ["ddp", "fsdp"] if key[0] > 1 else ["auto"]
        folder.mkdir()
        ranks = run_ranks(metric_jobs.measure, key[0], str(folder), CASES, ways)
        self.update({(key[0], way): [rank[way] for rank in ranks] for way in ways})
        return self[key]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What each rank told."""
    return Results(tmp_path_factory.mktemp("ranks"))


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether metrics agree in each bit, but for what is told above."""
    return list(found) == list(expected) and all(
        math.isclose(found[name], expected[name], rel_tol=LOOSE.get(name, 0.0)) for name in expected
    )


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_the_same_validation_to_the_bit(measured: Results, case: str, size: int, parallel: str) -> None:
    """The same weights give the same validation metrics to the last bit, on every rank of any number of them."""
    expected = measured[1, "auto"][0]["evaluated"][case]
    for rank in measured[size, parallel]:
        assert same(rank["evaluated"][case], expected), (rank["evaluated"][case], expected)


@pytest.mark.parametrize("size", [1, *SIZES])
@pytest.mark.parametrize("case", CASES)
def test_each_record_is_evaluated_once(measured: Results, case: str, size: int) -> None:
    """The ranks evaluate each record once, in the batches of one process, also where there are more ranks."""
    ranks = measured[size, "ddp" if size > 1 else "auto"]
    found = [batch for rank in ranks for batch in rank["batches"][case]]
    options = CASES[case]
    records, by = options.get("validated", jobs.RECORDS), options.get("validation_batch", jobs.BATCH)
    assert sorted(found) == [list(range(first, min(first + by, records))) for first in range(0, records, by)]


@pytest.mark.parametrize("size", [1, *SIZES])
def test_the_validation_is_that_of_all_records_together(measured: Results, size: int) -> None:
    """The mean loss is that of a plain pass over all records, for any batch size and number of ranks."""
    torch.manual_seed(0)
    model = jobs.Net()
    x, y, _ = jobs.data().tensors
    with torch.no_grad():
        expected = float(F.cross_entropy(model(x), y))
    for way in ("ddp", "fsdp") if size > 1 else ("auto",):
        for case in ("101", "by 7", "by 101"):
            found = measured[size, way][0]["evaluated"][case]
            assert found["loss"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("size", SIZES)
def test_metrics_jsonl_is_that_of_one_process(measured: Results, size: int, parallel: str) -> None:
    """Training metrics, reducers and validations are recorded as by one process, within what floats do."""
    expected, found = measured[1, "auto"][0]["lines"], measured[size, parallel][0]["lines"]
    assert len(found) == len(expected) == 7
    for line, wanted in zip(found, expected, strict=True):
        assert {k: v for k, v in line.items() if k != "metrics"} == {k: v for k, v in wanted.items() if k != "metrics"}
        tolerance = {name: LOOSE.get(name, 1e-12) for name in wanted["metrics"]}
        assert line["metrics"].keys() == wanted["metrics"].keys()
        for name, value in wanted["metrics"].items():
            assert line["metrics"][name] == pytest.approx(value, rel=tolerance[name]), (line["batch"], name)


@pytest.mark.parametrize("size", SIZES)
def test_all_ranks_have_the_same_metrics(measured: Results, size: int) -> None:
    """What fit returns is the same on each rank."""
    for parallel in ("ddp", "fsdp"):
        ranks = measured[size, parallel]
        assert all(rank["metrics"] == ranks[0]["metrics"] for rank in ranks)


@pytest.mark.parametrize("size", [1, *SIZES])
def test_a_whole_data_set_is_evaluated_by_the_chief(measured: Results, size: int) -> None:
    """evaluate_full_dataset is called on the chief alone, unless a forward pass needs all; all get what it gives."""
    expected = measured[1, "auto"][0]["at once"]
    for parallel in ("ddp", "fsdp") if size > 1 else ("auto",):
        ranks = measured[size, parallel]
        assert [rank["calls"] for rank in ranks] == [1] + [int(parallel == "fsdp")] * (size - 1)
        assert all(rank["at once"] == expected for rank in ranks)
        assert all(rank["at once, trained"] == ranks[0]["at once, trained"] for rank in ranks)
