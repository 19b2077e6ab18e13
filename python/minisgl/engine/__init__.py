"""The engine's process (rank) and its asynchronous face in the server (client)."""
