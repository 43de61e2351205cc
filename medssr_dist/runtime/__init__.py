"""What a run stands on: device, Ray cluster, models, network address, cache and log lines."""
