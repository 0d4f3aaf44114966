"""Where the pocket stream's images come from: one module per domain, one function per task."""
