"""How the bundled model was made: its facts, dialogues, tokenizer and training loop."""
