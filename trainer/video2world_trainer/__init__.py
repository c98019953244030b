"""Model side: the Video2World DiT, its training and its inference."""
