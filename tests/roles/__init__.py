"""The roles, on the lab's hosts."""
