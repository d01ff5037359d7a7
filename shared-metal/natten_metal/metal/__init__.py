"""The Metal kernels as text and as launches: templates, tilings, programs."""
