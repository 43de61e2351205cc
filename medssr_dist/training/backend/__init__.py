"""All that is used of OpenRLHF and DeepSpeed, and what they need on a CPU."""
