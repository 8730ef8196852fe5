"""The study: which part of a folded model is worth what, measured arm by arm."""
