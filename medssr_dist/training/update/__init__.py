"""Update of a GRPO step: groups to micro-batches to optimizer steps."""
