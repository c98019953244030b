"""Access the Hugging Face Hub: list, download, read by HTTP ranges."""
