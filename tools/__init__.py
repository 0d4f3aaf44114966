"""What made the committed data, weights and tables, and what runs the grid: commands, no library."""
