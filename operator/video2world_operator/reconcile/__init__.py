"""Decide the actions and status of a resource from observed state (pure)."""
