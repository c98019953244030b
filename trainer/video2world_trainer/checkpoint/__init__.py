"""Save, restore and export checkpoints."""
