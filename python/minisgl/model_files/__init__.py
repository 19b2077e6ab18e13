"""Where a model's files come from: the default model, folders, GGUF files, Hugging Face."""
