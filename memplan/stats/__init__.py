"""From a recording to percentiles, attributions and findings. Pure: values in, values out."""
