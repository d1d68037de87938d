"""From what one replica needs to what a node holds and what that costs: values in, values out."""
