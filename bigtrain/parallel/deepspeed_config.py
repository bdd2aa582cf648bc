"""DeepSpeed's dictionary, derived from our configuration by one pure function."""

from typing import Any

from bigtrain.config import Config


def deepspeed_stage(config: Config) -> int:
    """The ZeRO stage that DeepSpeed runs for our `parallel.zero_stage`.

    Stage 0 is stage 1 over a group of one process: DeepSpeed's own stage 0 neither knows pipelines nor
    reports a gradient norm. With bf16, stages 0 and 1 run on the class of stage 2, since DeepSpeed
    sends bf16 stage 1 to another optimizer that cannot defer its reduction to the end of the step.
    Deferred, both stages do the same: gradients are whole until the one reduction of the step.
    """
    stage = config.parallel.zero_stage
    return max(stage, 2 if config.training.precision == "bf16" else 1)


def deepspeed_config(config: Config) -> dict[str, Any]:
    """Everything that DeepSpeed must know, and nothing else.

    Accumulation is 1 whatever the number of micro-batches: Megatron-core's schedule runs them and
    scales the loss, DeepSpeed sees one accumulated gradient.
    """
    zero: dict[str, Any] = {
        "stage": deepspeed_stage(config),
        "contiguous_gradients": True,
        "overlap_comm": False,  # the reduction happens once, after the last backward pass
        "reduce_bucket_size": 50_000_000,
        "allgather_bucket_size": 50_000_000,
    }
    if config.parallel.zero_stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": 50_000_000,
            # Norms and biases stay whole: gathering them costs a message each and saves nothing.
            "stage3_param_persistence_threshold": 10 * config.model.hidden_size,
        }
    if config.parallel.offload == "optimizer":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    dictionary: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimizer.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's own CPU Adam would have to be compiled first.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
    }
    if config.training.precision == "bf16":
        dictionary["bf16"] = {"enabled": True}
        dictionary["data_types"] = {"grad_accum_dtype": "fp32"}
        dictionary["communication_data_type"] = "fp32"
    return dictionary
