"""What each command does: parse to specs, open, call one verb, render, say where it went."""
