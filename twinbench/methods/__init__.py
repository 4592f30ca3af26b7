"""The methods that the project is about, and what they share with the baselines."""
