"""The HTTP side: OpenAI-compatible endpoints over Starlette, server-sent events over raw ASGI."""
