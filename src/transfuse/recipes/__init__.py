"""One strict schema and one run() per kind of run."""
