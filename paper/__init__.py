"""The paper: its claims, what code writes for it, and how all of it is verified."""
