"""A function per figure, from tables to a matplotlib figure; `style` lays them out, shows and saves them."""
