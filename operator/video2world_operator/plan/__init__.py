"""Turn a spec into ordered stages, each with its manifests and commands (pure)."""
