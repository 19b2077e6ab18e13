"""Queues between processes, the messages they carry, and the two ends of a child process."""
