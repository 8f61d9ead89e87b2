"""What tools/compare.py is made of: arms, their runs, the numbers, the figures, the page."""
