"""Define what the operator and the workers must agree on; standard library only."""
