"""Talk to the API server: authentication, client, rate limit, work queue, leader election."""
