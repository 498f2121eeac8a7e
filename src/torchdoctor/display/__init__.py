"""Draw figures and write short summaries from plain numbers and names."""
