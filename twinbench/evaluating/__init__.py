"""draw -> judge -> summarize, for whoever can be evaluated."""
