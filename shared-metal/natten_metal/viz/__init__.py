"""Pictures of windows and of the kernels' work: text, SVG, PNG, and an HTML page (``viz``)."""
