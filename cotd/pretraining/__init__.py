"""Makes a small T5 from text: tokenizer, corpus, transplanted embeddings, objectives, and the loop that trains it."""
