"""What particular models need; nothing else imports it."""
