"""The config of a run: its keys with meaning, unit and default, and how it is read from YAML."""
