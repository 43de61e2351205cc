"""Where data come from: files of any kind, folders, and data sets on the Hugging Face hub, as rows."""
