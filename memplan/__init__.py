"""memplan: what each request class costs in resident memory, and what that means in nodes and money."""

__version__ = "0.1.0"
