"""What the public functions of both packages do alike."""
