"""Several models with different tokenizers: their distributions cached, aligned, fused, and learned."""
