# The optimizer's state divided among the processes (ZeRO stage 1); stands next to any schedule.
runner_type = 'swinv2_mm.Zero1Runner'
