"""Text on the server's side: encoding and decoding on its loop or in tokenizer processes."""
