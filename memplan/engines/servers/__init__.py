"""Engines that are servers: llama.cpp and vLLM as child processes, and any OpenAI-compatible endpoint.

They are driven over HTTP and measured from outside, with the same recording as the embedded engines.
"""
