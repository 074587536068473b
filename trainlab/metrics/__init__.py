"""Metrics: kept on the device batch by batch, brought to the host and reduced at a report."""

from trainlab.metrics.custom import FunctionReducer, MetricReducer, ReducerRegistry
from trainlab.metrics.reducer import Reducer, combine
from trainlab.metrics.rules import Column, MetricRules, Shares, Values, host_array, real_column
from trainlab.metrics.torchmetrics_state import MetricStates, holds_torchmetrics
from trainlab.metrics.validation import ValidationMetrics, check_full_dataset
from trainlab.metrics.window import RunningMetrics, Window

__all__ = [
    "Column",
    "FunctionReducer",
    "MetricReducer",
    "MetricRules",
    "MetricStates",
    "Reducer",
    "ReducerRegistry",
    "RunningMetrics",
    "Shares",
    "ValidationMetrics",
    "Values",
    "Window",
    "check_full_dataset",
    "combine",
    "holds_torchmetrics",
    "host_array",
    "real_column",
]
