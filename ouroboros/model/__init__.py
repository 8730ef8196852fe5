"""The looped model: its configuration, its modules, and what Hugging Face asks of them."""
