"""Turn source videos into captioned windows."""
