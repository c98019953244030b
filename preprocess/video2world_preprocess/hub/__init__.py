"""Download from the Hugging Face Hub."""
