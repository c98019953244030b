"""Talk to the API server: login, client, rate limit, work queue, leader election."""
