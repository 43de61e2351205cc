"""What the clients of chat APIs, batches and voting servers share: reading answers, failures, waits, proxies."""
