"""The update of a GRPO step: groups become micro-batches, and micro-batches become optimizer steps."""
