"""YAML to one validated config tree: what a run does, with meaning, unit and default of each key."""
