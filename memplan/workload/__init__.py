"""What is asked of the engine: traces, classes, prompts, and the profile's ladder."""
