"""What runs and why: devices, backends, limits, verdicts, and the walks of the pure backend."""
