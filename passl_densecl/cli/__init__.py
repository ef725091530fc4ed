"""The command line: one module per verb, its options beside what it calls."""
