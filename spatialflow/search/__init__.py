"""The search: the space of a config, the trainer that alternates, and what it writes."""
