"""The engine pool: leases of requests, vLLM engines, vLLM servers, placement."""
