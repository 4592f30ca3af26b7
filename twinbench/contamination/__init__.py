"""Which captions of a training set overlap with a benchmark's prompts."""
