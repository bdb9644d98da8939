"""iVideoGPT: a compressive video tokenizer and a transformer over frames, actions and rewards."""
