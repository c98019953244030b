"""Train: data, loss, optimizer, loop."""
