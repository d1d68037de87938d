"""The trace formats, one a module; a new one also needs its line in ``trace.FORMATS``."""
