"""Shipped weights of the embedded worlds, each with a JSON that says how it was made."""

from pathlib import Path

FOLDER = Path(__file__).parent
