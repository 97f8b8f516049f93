"""Our own task definitions, in the format of lm-eval."""
