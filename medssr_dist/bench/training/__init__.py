"""`medssr bench training` and `medssr bench update`: a GRPO step of ours compared with stock OpenRLHF."""
