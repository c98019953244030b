"""Set up process groups, sharding and context parallelism."""
