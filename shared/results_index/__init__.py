"""An index of the papers' result rows: what they print, which config each is, what we count. See tools/index.py."""
