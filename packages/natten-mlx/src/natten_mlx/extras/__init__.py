"""Functions for particular models; nothing else imports them."""
