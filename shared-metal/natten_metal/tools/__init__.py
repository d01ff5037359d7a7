"""The command line's tools: doctor, demo and training demo, and what they draw."""
