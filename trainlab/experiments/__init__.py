"""What a run is made of besides its training: its folder, its parameters, its record. No torch."""

from trainlab.experiments.run_folder import RunFolder

__all__ = ["RunFolder"]
