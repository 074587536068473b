"""Precision: autocast and gradient scaling behind one small interface."""

from trainlab.precision.precision import PRECISIONS, Precision
from trainlab.precision.scaling import GradientScaling

__all__ = ["PRECISIONS", "GradientScaling", "Precision"]
