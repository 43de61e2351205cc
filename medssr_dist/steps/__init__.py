"""The steps of the method, a file each, as `pipeline.py` calls them."""
