"""Ranks as the server sees them: a client of their group, its life, and where they run."""
