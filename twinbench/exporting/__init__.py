"""A trained run as a folder that others load."""
