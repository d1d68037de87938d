"""From summaries and recordings to what people read: one Document, rendered in several ways."""
