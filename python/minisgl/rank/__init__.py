"""The program of a rank's process: it loads the native engine and speaks with the server."""
