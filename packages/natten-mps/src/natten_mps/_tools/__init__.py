"""The parts of the command line's tools that need torch."""
