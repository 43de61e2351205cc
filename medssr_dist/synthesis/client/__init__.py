"""The async client of chat APIs: endpoints, rate limits, batches, budget."""
