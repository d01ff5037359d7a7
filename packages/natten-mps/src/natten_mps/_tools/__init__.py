"""What the command line's tools need of torch."""
