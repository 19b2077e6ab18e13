"""Ray, an engine for clusters: see docs/RAY.md. What is here runs in processes of Ray's, or of its
own; the server imports none of it.
"""
