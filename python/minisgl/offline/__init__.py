"""The engine without a server: LLM and the shell, in the caller's thread."""
