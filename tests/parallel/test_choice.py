"""Which way of sharing models is taken, and what its options refuse."""

import dataclasses
import logging
from typing import Any

import pytest
import torch
from torch import nn

from trainlab.distributed import DistributedContext
from trainlab.errors import InvalidTypeError, InvalidValueError
from trainlab.parallel import DDPOptions, FSDPOptions, Parallel, make_parallel

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["auto", "ddp", "fsdp"])
def test_one_process_shares_with_nobody(name: str) -> None:
    """Without a process group every way of sharing leaves the model and its training as they are."""
    parallel = make_parallel(name, None, DistributedContext(), CPU)
    model, value = nn.Linear(2, 1), torch.ones(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert type(parallel) is Parallel
    assert parallel.wrap(model) is model
    parallel.add_optimizer(optimizer, 2)
    parallel.start()
    parallel.begin_batch(reduces=True)
    with parallel.evaluating():
        parallel.before_backward(value)
    parallel.before_step(optimizer)
    error = ValueError()
    assert parallel.translate(error) is error
    assert parallel.average(value) is value
    parallel.close()
    assert (parallel.name, parallel.shards, parallel.collective_forward) == ("single", False, False)
    assert "_compiled_call_impl" not in vars(model)


def test_a_model_that_is_not_sharded_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Who asks for FSDP in one process reads in the log that nothing is sharded."""
    with caplog.at_level(logging.INFO, "trainlab.parallel"):
        make_parallel("fsdp", None, DistributedContext(), CPU)
    assert "not sharded" in caplog.text


@pytest.mark.parametrize(
    ("name", "options", "kind", "parts"),
    [
        ("zero", None, InvalidValueError, ["'auto', 'ddp', 'fsdp'", "Received: 'zero'"]),
        ("auto", FSDPOptions(), InvalidTypeError, ["takes DDPOptions", "parallel='fsdp' with FSDPOptions"]),
        ("fsdp", DDPOptions(), InvalidTypeError, ["takes FSDPOptions"]),
    ],
)
def test_a_wrong_choice_is_refused(name: str, options: Any, kind: type[Exception], parts: list[str]) -> None:
    """An unknown name, and options of another one, are errors that name what there is."""
    with pytest.raises(kind) as caught:
        make_parallel(name, options, DistributedContext(), CPU)
    assert [part for part in parts if part not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("make", "kind", "parts"),
    [
        (lambda: DDPOptions(bucket_size=3), InvalidTypeError, ["no option 'bucket_size'", "bucket_cap_mb"]),
        (lambda: FSDPOptions(wraps=()), InvalidTypeError, ["no option 'wraps'", "wrap, param_dtype"]),
        (lambda: DDPOptions(static_graph=1), InvalidTypeError, ["static_graph is True or False", "Received: 1"]),
        (lambda: DDPOptions(bucket_cap_mb="25"), InvalidTypeError, ["a number of MiB", "'25'"]),
        (lambda: DDPOptions(bucket_cap_mb=0), InvalidValueError, ["above 0", "Received: 0"]),
        (lambda: DDPOptions(bucket_cap_mb=float("nan")), InvalidValueError, ["above 0", "nan"]),
        (lambda: DDPOptions(static_graph=True, find_unused_parameters=True), InvalidValueError, ["by itself"]),
        (lambda: FSDPOptions(wrap=("Block",)), InvalidTypeError, ["tuple of classes", "'Block'"]),
        (lambda: FSDPOptions(wrap=(int,)), InvalidTypeError, ["tuple of classes", "int"]),
        (lambda: FSDPOptions(param_dtype="half"), InvalidValueError, ["'fp32', 'bf16', 'fp16'", "'half'"]),
        (lambda: FSDPOptions(reduce_dtype=torch.int8), InvalidValueError, ["reduce_dtype", "torch.int8"]),
        (lambda: FSDPOptions(reshard_after_forward=1), InvalidValueError, ["at least 2", "Received: 1"]),
        (lambda: FSDPOptions(reshard_after_forward=None), InvalidTypeError, ["a bool or a number", "None"]),
        (lambda: FSDPOptions(cpu_offload=None), InvalidTypeError, ["cpu_offload is True or False"]),
        (lambda: FSDPOptions(shard_size=True), InvalidTypeError, ["a number of ranks", "True"]),
        (lambda: FSDPOptions(shard_size=0), InvalidValueError, ["at least 1", "Received: 0"]),
    ],
)
def test_wrong_options_are_refused(make: Any, kind: type[Exception], parts: list[str]) -> None:
    """An option that is unknown or cannot be used is an error where it is given, with what was received."""
    with pytest.raises(kind) as caught:
        make()
    assert [part for part in parts if part not in str(caught.value)] == []


def test_number_formats_have_short_names() -> None:
    """Number formats of FSDP can be given by the names that precision= takes, and one class without a tuple."""
    options = FSDPOptions(param_dtype="bf16", reduce_dtype=torch.float32, wrap=nn.Linear)
    assert (options.param_dtype, options.reduce_dtype, options.wrap) == (torch.bfloat16, torch.float32, (nn.Linear,))
    assert dataclasses.replace(options, cpu_offload=True).param_dtype == torch.bfloat16
