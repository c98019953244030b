"""Check machine, cluster and Hub before hours are spent."""
