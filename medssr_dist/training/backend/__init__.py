"""OpenRLHF and DeepSpeed: everything that training uses of them, and the patches that they need."""
