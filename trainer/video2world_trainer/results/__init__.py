"""Draw the results page."""
