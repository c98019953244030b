"""Check machine, cluster and Hub before a run spends hours."""
