"""Define the resource: spec, status, validation, conditions and errors."""
