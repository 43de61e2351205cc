"""The asynchronous client of chat APIs: endpoints, rate limits, retries, batches and the budget."""
