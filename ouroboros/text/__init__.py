"""Text as windows of tokens: files, documents, and what bounds them."""
