"""Projects of other trainers as configs of ours: what was understood, what had to change, what has no place here."""
