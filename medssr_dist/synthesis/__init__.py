"""Question synthesis: prompts, draws, async API client, journal, reply checks, offline teacher."""
