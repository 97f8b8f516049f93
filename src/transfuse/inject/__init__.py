"""Documents to sections, facts, Q&A and training records."""
