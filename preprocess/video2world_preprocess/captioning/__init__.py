"""Caption videos through an OpenAI-compatible endpoint: frames, requests, answers, records."""
