"""The embedded engine: transformers' model code and weights, our batching and KV memory."""
