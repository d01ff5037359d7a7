"""What the public functions of both packages have in common."""
