# DeepSpeed, ZeRO stage 1, 2 or 3, with or without offload to main memory; stands next to any schedule.
runner_type = 'swinv2_mm.DeepSpeedRunner'
strategy = dict(
    type='swinv2_mm.DeepSpeedStrategy',
    config=dict(  # https://www.deepspeed.ai/docs/config-json
        zero_optimization=dict(
            stage=2,
            offload_optimizer=dict(device='none'),  # or 'cpu'
            offload_param=dict(device='none'),  # or 'cpu', at stage 3
            stage3_gather_16bit_weights_on_model_save=True,
        ),
        # The optimizer is the schedule's, one of torch.optim.
        zero_allow_untested_optimizer=True,
        zero_force_ds_cpu_optimizer=False,
    ),
)
