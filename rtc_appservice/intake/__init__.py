"""Stage 1: homeserver transactions in; 200 only after the commit."""
