# Parameters, gradients and the optimizer's state divided among the processes (FSDP2); stands next to any schedule.
runner_type = 'swinv2_mm.FSDP2Runner'
fsdp2 = dict(
    block_dtype='float32',  # 'bfloat16': half the traffic, less precise
    offload=False,  # True: shards, gradients and the optimizer's state in main memory; slower
)
