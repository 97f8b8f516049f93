"""The parameter route: a larger teacher's weights chosen by sensitivity, cut to the student's shape, started from."""
