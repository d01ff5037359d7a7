"""How long neighborhood attention takes on this machine, beside what one would use instead."""
