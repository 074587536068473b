"""The names of determined.pytorch."""

import inspect

import pytest

import trainlab
from trainlab.compat import determined as pytorch

# The public names of determined.pytorch 0.38, and those of its parts that the same scripts import beside it.
NAMES = """
Batch CheckpointLoadContext DataLoader Epoch LRScheduler MetricReducer PyTorchCallback PyTorchExperimentalContext
PyTorchTrial PyTorchTrialContext Reducer TorchData TrainUnit Trainer adapt_batch_sampler data_length init
load_trial_from_checkpoint_path samplers to_device DistributedContext TorchWriter
""".split()
SAMPLERS = """
DistributedBatchSampler DistributedSampler RepeatBatchSampler RepeatSampler ReproducibleShuffleBatchSampler
ReproducibleShuffleSampler SkipBatchSampler SkipSampler
""".split()
# What a PyTorchTrialContext offers.
CONTEXT = """
backward configure_apex_amp current_train_batch current_train_epoch distributed experimental get_data_config
get_enable_tensorboard_logging get_experiment_config get_experiment_id get_global_batch_size get_hparam get_hparams
get_initial_batch get_per_slot_batch_size get_stop_requested get_tensorboard_path get_tensorboard_writer get_trial_id
get_trial_seed is_epoch_end is_epoch_start lr_schedulers models optimizers reduce_metrics reset_reducers
set_enable_tensorboard_logging set_profiler set_stop_requested step_optimizer to_device wrap_lr_scheduler wrap_model
wrap_optimizer wrap_reducer wrap_scaler
""".split()
EXPERIMENTAL = """
disable_auto_to_device disable_dataset_reproducibility_checks reduce_metrics reset_reducers use_amp wrap_reducer
""".split()


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there(name: str) -> None:
    """Whatever a script takes from determined.pytorch it finds here."""
    assert name in pytorch.__all__ and hasattr(pytorch, name)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_there(name: str) -> None:
    """The samplers are found where they were."""
    assert inspect.isclass(getattr(pytorch.samplers, name))


def test_the_context_has_every_method(open_run) -> None:
    """A Trial finds on its context whatever it found there."""
    context = open_run()
    assert [name for name in CONTEXT if not hasattr(context, name)] == []
    assert [name for name in EXPERIMENTAL if not hasattr(context.experimental, name)] == []
    assert isinstance(context, pytorch.PyTorchTrialContext)
    assert isinstance(context.experimental, pytorch.PyTorchExperimentalContext)


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (pytorch.init, "hparams exp_conf distributed aggregation_frequency enable_tensorboard_logging"),
        (pytorch.DataLoader.get_data_loader, "self repeat skip num_replicas rank"),
        (
            pytorch.Trainer.fit,
            "self checkpoint_period validation_period max_length reporting_period checkpoint_policy latest_checkpoint "
            "step_zero_validation test_mode",
        ),
        (pytorch.Trainer.configure_profiler, "self sync_timings enabled begin_on_batch end_after_batch"),
        (pytorch.load_trial_from_checkpoint_path, "path trial_class trial_kwargs torch_load_kwargs"),
        (pytorch.PyTorchTrialContext.step_optimizer, "self optimizer clip_grads auto_zero_grads scaler"),
        (pytorch.PyTorchTrialContext.backward, "self loss gradient retain_graph create_graph"),
        (
            pytorch.PyTorchTrialContext.wrap_optimizer,
            "self optimizer backward_passes_per_step average_aggregated_gradients",
        ),
        (pytorch.PyTorchTrialContext.wrap_lr_scheduler, "self lr_scheduler step_mode frequency"),
        (pytorch.PyTorchTrialContext.wrap_reducer, "self reducer name for_training for_validation"),
        (pytorch.to_device, "data device warned_types"),
    ],
)
def test_arguments_keep_their_names_and_places(function, parameters: str) -> None:
    """A call that was right for Determined, by position or by keyword, is right here."""
    names = parameters.split()
    assert list(inspect.signature(function).parameters)[: len(names)] == names


def test_parts_of_both_libraries_go_together() -> None:
    """Units, callbacks and reducers are trainlab's own, so that a port can go over to trainlab step by step."""
    assert pytorch.Batch is trainlab.Batch and pytorch.Epoch is trainlab.Epoch
    assert pytorch.PyTorchCallback is trainlab.Callback and pytorch.MetricReducer is trainlab.MetricReducer
    assert issubclass(pytorch.PyTorchTrial, trainlab.Trial)
    assert issubclass(pytorch.DataLoader, trainlab.DataLoader)
