"""Models, documents, JSONL, run folders: everything that touches a disk."""
