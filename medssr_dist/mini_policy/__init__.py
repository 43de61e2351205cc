"""The mini policy: a small language model trained from scratch on text made from HPO. See docs/evidence.md."""
